-- Sources of one owner are joined there, the other owner's filter goes to it.
SELECT d.name, m.country, t.dose FROM north.drugs d JOIN north.makers m ON m.maker = d.maker JOIN south.trials t ON t.drug = d.drug WHERE t.dose > 3 AND m.country <> 'x';
-- here
SELECT d.name, d.country, t.dose FROM f0 AS d CROSS JOIN f1 AS t WHERE t.drug = d.drug;
-- f0
SELECT d.name, m.country, d.drug FROM drugs AS d, makers AS m WHERE m.maker = d.maker AND m.country <> 'x';
-- f1
SELECT t.dose, t.drug FROM trials AS t WHERE t.dose > 3 AND t.drug IN (SELECT keys_f0_2.k FROM keys_f0_2);

-- A LEFT join of one owner goes along.
SELECT d.name, m.country, t.dose FROM south.trials t JOIN north.drugs d ON t.drug = d.drug LEFT JOIN north.makers m ON m.maker = d.maker;
-- here
SELECT d.name, d.country, t.dose FROM f0 AS t CROSS JOIN f1 AS d WHERE t.drug = d.drug;
-- f0
SELECT t.dose, t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f1_2.k FROM keys_f1_2);
-- f1
SELECT d.name, m.country, d.drug FROM drugs AS d LEFT JOIN makers AS m ON m.maker = d.maker;

-- A condition on what a LEFT join may have made NULL stays here.
SELECT t.dose, d.name FROM south.trials t LEFT JOIN north.drugs d ON d.drug = t.drug AND d.price > 2 WHERE d.name IS NULL AND t.dose > 1;
-- here
SELECT t.dose, d.name FROM f0 AS t LEFT JOIN f1 AS d ON d.drug = t.drug WHERE d.name IS NULL;
-- f0
SELECT t.dose, t.drug FROM trials AS t WHERE t.dose > 1;
-- f1
SELECT d.name, d.drug FROM drugs AS d WHERE d.price > 2;

-- Nothing is filtered before a FULL join.
SELECT t.dose, d.name FROM south.trials t FULL JOIN north.drugs d ON d.drug = t.drug WHERE t.dose > 1;
-- here
SELECT t.dose, d.name FROM f0 AS t FULL JOIN f1 AS d ON d.drug = t.drug WHERE t.dose > 1;
-- f0
SELECT t.dose, t.drug FROM trials AS t;
-- f1
SELECT d.name, d.drug FROM drugs AS d;

-- A SEMI join keeps its right side apart.
SELECT t.dose FROM south.trials t SEMI JOIN north.drugs d ON d.drug = t.drug AND d.price > 2;
-- here
SELECT t.dose FROM f0 AS t SEMI JOIN f1 AS d ON d.drug = t.drug;
-- f0
SELECT t.dose, t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f1_0.k FROM keys_f1_0);
-- f1
SELECT d.drug FROM drugs AS d WHERE d.price > 2;

-- Shares that are cut by one rule are joined at each owner.
SELECT p.ward, v.cost FROM "all".patients p JOIN "all".visits v ON v.patient = p.id WHERE p.age > 60;
-- here
SELECT p.ward, p.cost FROM f0 AS p;
-- f0.north
SELECT p.ward, v.cost FROM patients AS p, visits AS v WHERE v.patient = p.id AND p.age > 60;
-- f0.south
SELECT p.ward, v.cost FROM patients AS p, visits AS v WHERE v.patient = p.id AND p.age > 60;
-- f0.west
SELECT p.ward, v.cost FROM patients AS p, visits AS v WHERE v.patient = p.id AND p.age > 60;

-- Shares joined by anything else are not.
SELECT p.ward, v.cost FROM "all".patients p JOIN "all".visits v ON v.drug = p.age;
-- here
SELECT p.ward, v.cost FROM f0 AS p CROSS JOIN f1 AS v WHERE v.drug = p.age;
-- f0.north
SELECT p.ward, p.age FROM patients AS p;
-- f0.south
SELECT p.ward, p.age FROM patients AS p;
-- f0.west
SELECT p.ward, p.age FROM patients AS p;
-- f1.north
SELECT v.cost, v.drug FROM visits AS v;
-- f1.south
SELECT v.cost, v.drug FROM visits AS v;
-- f1.west
SELECT v.cost, v.drug FROM visits AS v;
