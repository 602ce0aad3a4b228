-- EXISTS asks for no column.
SELECT name FROM north.drugs d WHERE EXISTS (SELECT * FROM south.trials t WHERE t.drug = d.drug);
-- here
SELECT name FROM north.drugs AS d WHERE EXISTS(SELECT 1 AS one FROM south.trials AS t WHERE t.drug = d.drug);

-- An aggregate always gives a row, so it stays.
SELECT name FROM north.drugs d WHERE EXISTS (SELECT max(t.dose) FROM south.trials t WHERE t.drug = d.drug);
-- here
SELECT name FROM north.drugs AS d WHERE EXISTS(SELECT MAX(t.dose) FROM south.trials AS t WHERE t.drug = d.drug);
