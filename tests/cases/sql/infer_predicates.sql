-- A comparison with a literal holds for every equal column.
SELECT d.name FROM north.drugs d JOIN south.trials t ON t.drug = d.drug WHERE t.drug = 7;
-- here
SELECT d.name FROM north.drugs AS d CROSS JOIN south.trials AS t WHERE t.drug = d.drug AND t.drug = 7 AND d.drug = 7;

-- Two columns of one owner that are equal through a third are equal.
SELECT 1 AS one FROM north.drugs d, south.trials t, north.codes c WHERE t.drug = d.drug AND t.drug = c.code;
-- here
SELECT 1 AS one FROM north.drugs AS d CROSS JOIN south.trials AS t CROSS JOIN north.codes AS c WHERE t.drug = d.drug AND t.drug = c.code AND d.drug = c.code;

-- Columns of different types are not taken for equal.
SELECT d.name FROM north.drugs d JOIN south.trials t ON t.patient = d.drug WHERE d.drug = 7;
-- here
SELECT d.name FROM north.drugs AS d CROSS JOIN south.trials AS t WHERE t.patient = d.drug AND d.drug = 7;

-- An OR over two owners implies a part for each of them.
SELECT d.name FROM north.drugs d, south.trials t WHERE t.drug = d.drug AND (d.name = 'a' AND t.dose > 1 OR d.name = 'b' AND t.dose < 9);
-- here
SELECT d.name FROM north.drugs AS d CROSS JOIN south.trials AS t WHERE t.drug = d.drug AND (d.name = 'a' AND t.dose > 1 OR d.name = 'b' AND t.dose < 9) AND (d.name = 'a' OR d.name = 'b') AND (t.dose > 1 OR t.dose < 9);

-- A branch that says nothing about an owner implies nothing for it.
SELECT d.name FROM north.drugs d, south.trials t WHERE t.drug = d.drug AND (d.name = 'a' OR t.dose < 9);
-- here
SELECT d.name FROM north.drugs AS d CROSS JOIN south.trials AS t WHERE t.drug = d.drug AND (d.name = 'a' OR t.dose < 9);

-- A correlated subquery reads the equal column of its own owner.
SELECT d.name FROM north.drugs d, south.trials t WHERE t.drug = d.drug AND t.dose > (SELECT avg(i.dose) FROM south.trials i WHERE i.drug = d.drug);
-- here
SELECT d.name FROM north.drugs AS d CROSS JOIN south.trials AS t WHERE t.drug = d.drug AND t.dose > (SELECT AVG(i.dose) AS _col_0 FROM south.trials AS i WHERE i.drug = t.drug);

-- What all branches of an OR say holds by itself.
SELECT d.name FROM north.drugs d, south.trials t WHERE t.drug = d.drug AND d.price > 1 AND t.dose > 1 OR t.drug = d.drug AND t.dose < 9;
-- here
SELECT d.name FROM north.drugs AS d CROSS JOIN south.trials AS t WHERE (t.drug = d.drug AND d.price > 1 AND t.dose > 1 OR t.drug = d.drug AND t.dose < 9) AND t.drug = d.drug AND (t.dose > 1 OR t.dose < 9);
