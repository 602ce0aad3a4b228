-- The condition of an inner join stands in WHERE.
SELECT d.name FROM north.drugs d JOIN south.trials t ON t.drug = d.drug AND t.dose > 1 WHERE d.price < 5;
-- here
SELECT d.name FROM north.drugs AS d CROSS JOIN south.trials AS t WHERE t.drug = d.drug AND t.dose > 1 AND d.price < 5;

-- The condition of a LEFT join stays in ON.
SELECT d.name FROM north.drugs d LEFT JOIN south.trials t ON t.drug = d.drug;
-- here
SELECT d.name FROM north.drugs AS d LEFT JOIN south.trials AS t ON t.drug = d.drug;

-- A RIGHT join as the first join is a LEFT join turned round.
SELECT d.name FROM north.drugs d RIGHT JOIN south.trials t ON t.drug = d.drug;
-- here
SELECT d.name FROM south.trials AS t LEFT JOIN north.drugs AS d ON t.drug = d.drug;

-- Nothing moves before a FULL join.
SELECT d.name FROM north.drugs d JOIN north.makers m ON m.maker = d.maker FULL JOIN south.trials t ON t.drug = d.drug;
-- here
SELECT d.name FROM north.drugs AS d JOIN north.makers AS m ON m.maker = d.maker FULL JOIN south.trials AS t ON t.drug = d.drug;
