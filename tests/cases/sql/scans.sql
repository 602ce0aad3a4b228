-- A fragment gives the columns that are still needed, and no more.
SELECT p.ward, t.dose FROM north.patients p JOIN south.trials t ON t.patient = p.id;
-- here
SELECT p.ward, t.dose FROM f0 AS p CROSS JOIN f1 AS t WHERE t.patient = p.id;
-- f0
SELECT p.ward, p.id FROM patients AS p;
-- f1
SELECT t.dose, t.patient FROM trials AS t WHERE t.patient IN (SELECT keys_f0_1.k FROM keys_f0_1);

-- A question for distinct rows leaves double ones at the owners.
SELECT DISTINCT p.ward, t.drug FROM north.patients p, south.trials t WHERE t.patient = p.id;
-- here
SELECT DISTINCT p.ward, t.drug FROM f0 AS p CROSS JOIN f1 AS t WHERE t.patient = p.id;
-- f0
SELECT DISTINCT p.ward, p.id FROM patients AS p;
-- f1
SELECT DISTINCT t.drug, t.patient FROM trials AS t WHERE t.patient IN (SELECT keys_f0_1.k FROM keys_f0_1);

-- EXISTS moves each key once.
SELECT name FROM north.drugs d WHERE NOT EXISTS (SELECT * FROM south.trials t WHERE t.drug = d.drug AND t.dose > 2);
-- here
SELECT d.name FROM f1 AS d WHERE NOT EXISTS(SELECT 1 AS one FROM f0 AS t WHERE t.drug = d.drug);
-- f0
SELECT DISTINCT t.drug FROM trials AS t WHERE t.dose > 2 AND t.drug IN (SELECT keys_f1_1.k FROM keys_f1_1);
-- f1
SELECT d.name, d.drug FROM drugs AS d;

-- EXCEPT ALL takes away as many as there are: owners leave nothing out.
SELECT note FROM west.private WHERE drug IN (SELECT drug FROM north.drugs EXCEPT ALL SELECT drug FROM south.trials);
-- here
SELECT private.note FROM f2 AS private WHERE private.drug IN (SELECT f0.drug FROM f0 EXCEPT ALL SELECT f1.drug FROM f1);
-- f0
SELECT drugs.drug FROM drugs;
-- f1
SELECT trials.drug FROM trials;
-- f2
SELECT private.note, private.drug FROM private;
