-- EXISTS asks for no column.
SELECT name FROM north.drugs d WHERE EXISTS (SELECT * FROM south.trials t WHERE t.drug = d.drug);
-- here
SELECT d.name FROM north.drugs AS d WHERE EXISTS(SELECT 1 AS one FROM south.trials AS t WHERE t.drug = d.drug);

-- An aggregate always gives a row, so it stays.
SELECT name FROM north.drugs d WHERE EXISTS (SELECT max(t.dose) FROM south.trials t WHERE t.drug = d.drug);
-- here
SELECT d.name FROM north.drugs AS d WHERE EXISTS(SELECT MAX(t.dose) AS _col_0 FROM south.trials AS t WHERE t.drug = d.drug);

-- A condition may name an output, which is bound before it goes.
SELECT w.note FROM west.private w WHERE EXISTS (SELECT d.maker AS note FROM north.drugs d WHERE d.drug = w.drug AND note > 3 ORDER BY note);
-- here
SELECT w.note FROM west.private AS w WHERE EXISTS(SELECT 1 AS one FROM north.drugs AS d WHERE d.drug = w.drug AND d.maker > 3);

-- What is grouped has as many rows as its keys have values, so it stays.
SELECT w.note FROM west.private w WHERE EXISTS (SELECT d.maker FROM north.drugs d GROUP BY 1 LIMIT 1 OFFSET 2);
-- here
SELECT w.note FROM west.private AS w WHERE EXISTS(SELECT d.maker FROM north.drugs AS d GROUP BY d.maker LIMIT 1 OFFSET 2);
