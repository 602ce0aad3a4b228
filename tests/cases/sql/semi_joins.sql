-- The smaller side's keys narrow the larger.
SELECT d.name, t.dose FROM north.drugs d JOIN south.trials t ON t.drug = d.drug WHERE d.name LIKE 'a%';
-- here
SELECT d.name, t.dose FROM f0 AS d CROSS JOIN f1 AS t WHERE t.drug = d.drug;
-- f0
SELECT d.name, d.drug FROM drugs AS d WHERE d.name LIKE 'a%';
-- f1
SELECT t.dose, t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f0_1.k FROM keys_f0_1);

-- Nothing narrows the preserved side of a LEFT join.
SELECT d.name, t.dose FROM south.trials t LEFT JOIN north.drugs d ON d.drug = t.drug;
-- here
SELECT d.name, t.dose FROM f0 AS t LEFT JOIN f1 AS d ON d.drug = t.drug;
-- f0
SELECT t.dose, t.drug FROM trials AS t;
-- f1
SELECT d.name, d.drug FROM drugs AS d;

-- NOT EXISTS is narrowed by the block's keys.
SELECT d.name FROM north.drugs d WHERE d.price > 9 AND NOT EXISTS (SELECT * FROM south.trials t WHERE t.drug = d.drug);
-- here
SELECT d.name FROM f1 AS d WHERE NOT EXISTS(SELECT 1 AS one FROM f0 AS t WHERE t.drug = d.drug);
-- f0
SELECT DISTINCT t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f1_1.k FROM keys_f1_1);
-- f1
SELECT d.name, d.drug FROM drugs AS d WHERE d.price > 9;

-- A positive IN narrows the block.
SELECT t.dose FROM south.trials t WHERE t.drug IN (SELECT d.drug FROM north.drugs d WHERE d.price > 9);
-- here
SELECT t.dose FROM f1 AS t WHERE t.drug IN (SELECT f0.drug FROM f0);
-- f0
SELECT DISTINCT d.drug FROM drugs AS d WHERE d.price > 9;
-- f1
SELECT t.dose, t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f0_0.k FROM keys_f0_0);

-- NOT IN does not.
SELECT t.dose FROM south.trials t WHERE t.drug NOT IN (SELECT d.drug FROM north.drugs d WHERE d.price > 9);
-- here
SELECT t.dose FROM f1 AS t WHERE NOT t.drug IN (SELECT f0.drug FROM f0);
-- f0
SELECT DISTINCT d.drug FROM drugs AS d WHERE d.price > 9;
-- f1
SELECT t.dose, t.drug FROM trials AS t;

-- An agreement that does not allow it keeps its keys.
SELECT p.note, t.dose FROM west.private p JOIN south.trials t ON t.drug = p.drug;
-- here
SELECT p.note, t.dose FROM f0 AS p CROSS JOIN f1 AS t WHERE t.drug = p.drug;
-- f0
SELECT p.note, p.drug FROM private AS p;
-- f1
SELECT t.dose, t.drug FROM trials AS t;

-- Keys stand under the dataset where a subquery would run over all of it.
SELECT d.name FROM north.drugs d, south.trials t WHERE t.drug = d.drug AND d.price > 9 AND t.dose > (SELECT avg(i.dose) FROM south.trials i WHERE i.drug = t.drug);
-- here
SELECT d.name FROM f0 AS d CROSS JOIN f1 AS t WHERE t.drug = d.drug;
-- f0
SELECT d.name, d.drug FROM drugs AS d WHERE d.price > 9;
-- f1
SELECT t.drug FROM (SELECT * FROM trials AS t WHERE t.drug IN (SELECT keys_f0_1.k FROM keys_f0_1)) AS t WHERE t.dose > (SELECT AVG(i.dose) AS _col_0 FROM trials AS i WHERE i.drug = t.drug);

-- Nobody waits for keys to what is small as it is.
SELECT t.dose, v.cost FROM south.trials t, north.visits v WHERE v.patient = t.patient AND t.dose = 9;
-- here
SELECT t.dose, v.cost FROM f0 AS t CROSS JOIN f1 AS v WHERE v.patient = t.patient;
-- f0
SELECT t.dose, t.patient FROM trials AS t WHERE t.dose = 9;
-- f1
SELECT v.cost, v.patient FROM visits AS v;

-- Of three times as much the rows that meet nobody stay where they are.
SELECT t.dose, v.cost FROM south.trials t, "all".visits v WHERE v.patient = t.patient AND t.dose = 9;
-- here
SELECT t.dose, v.cost FROM f0 AS t CROSS JOIN f1 AS v WHERE v.patient = t.patient;
-- f0
SELECT t.dose, t.patient FROM trials AS t WHERE t.dose = 9;
-- f1.north
SELECT v.cost, v.patient FROM visits AS v WHERE v.patient IN (SELECT keys_f0_1.k FROM keys_f0_1);
-- f1.south
SELECT v.cost, v.patient FROM visits AS v WHERE v.patient IN (SELECT keys_f0_1.k FROM keys_f0_1);
-- f1.west
SELECT v.cost, v.patient FROM visits AS v WHERE v.patient IN (SELECT keys_f0_1.k FROM keys_f0_1);

-- Of texts nobody knows how long they are.
SELECT t.dose, p.ward FROM south.trials t, north.patients p WHERE p.id = t.patient AND t.dose = 9 AND t.drug = 1 AND t.started = DATE '2026-01-01';
-- here
SELECT t.dose, p.ward FROM f0 AS t CROSS JOIN f1 AS p WHERE p.id = t.patient;
-- f0
SELECT t.dose, t.patient FROM trials AS t WHERE t.dose = 9 AND t.drug = 1 AND t.started = TRY_CAST('2026-01-01' AS DATE);
-- f1
SELECT p.ward, p.id FROM patients AS p WHERE p.id IN (SELECT keys_f0_1.k FROM keys_f0_1);
