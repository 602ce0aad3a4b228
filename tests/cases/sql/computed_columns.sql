-- An expression over one owner's columns is one column instead of two.
SELECT d.name, t.dose * 2 + t.patient AS x FROM north.drugs d JOIN south.trials t ON t.drug = d.drug;
-- here
SELECT d.name, t.x0 AS x FROM f0 AS d CROSS JOIN f1 AS t WHERE t.drug = d.drug;
-- f0
SELECT d.name, d.drug FROM drugs AS d;
-- f1
SELECT t.drug, t.dose * 2 + t.patient AS x0 FROM trials AS t WHERE t.drug IN (SELECT keys_f0_1.k FROM keys_f0_1);

-- A test of a text is a truth value instead of the text.
SELECT sum(CASE WHEN d.name LIKE 'a%' THEN t.dose ELSE 0 END) AS s, count(*) AS n FROM north.drugs d JOIN south.trials t ON t.drug = d.drug;
-- here
SELECT SUM(CASE WHEN d.x0 THEN t.dose ELSE 0 END) AS s, COUNT(*) AS n FROM f0 AS d CROSS JOIN f1 AS t WHERE t.drug = d.drug;
-- f0
SELECT d.drug, d.name LIKE 'a%' AS x0 FROM drugs AS d;
-- f1
SELECT t.dose, t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f0_0.k FROM keys_f0_0);

-- Not where the columns are needed anyway.
SELECT d.price, d.drug, d.price * d.drug AS x, t.dose FROM north.drugs d JOIN south.trials t ON t.drug = d.drug;
-- here
SELECT d.price, d.drug, d.price * d.drug AS x, t.dose FROM f0 AS d CROSS JOIN f1 AS t WHERE t.drug = d.drug;
-- f0
SELECT d.price, d.drug FROM drugs AS d;
-- f1
SELECT t.dose, t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f0_1.k FROM keys_f0_1);

-- Not outside of aggregates in a block with groups.
SELECT t.dose + t.patient AS x, sum(d.price * t.dose) AS s FROM north.drugs d JOIN south.trials t ON t.drug = d.drug GROUP BY t.dose + t.patient;
-- here
SELECT t.dose + t.patient AS x, SUM(d.price * t.dose) AS s FROM f0 AS d CROSS JOIN f1 AS t WHERE t.drug = d.drug GROUP BY t.dose + t.patient;
-- f0
SELECT d.price, d.drug FROM drugs AS d;
-- f1
SELECT t.dose, t.patient, t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f0_1.k FROM keys_f0_1);
