-- A WITH query that two places read is asked once.
WITH c AS (SELECT drug, sum(cost) AS total FROM "all".visits GROUP BY drug) SELECT drug FROM c WHERE total = (SELECT max(total) FROM c);
-- here
SELECT c.drug FROM (SELECT visits.drug, SUM(visits.p0) AS total FROM f0 AS visits GROUP BY visits.drug) AS c WHERE c.total = (SELECT MAX(c_2.total) AS _col_0 FROM (SELECT visits_2.drug, SUM(visits_2.p0) AS total FROM f0 AS visits_2 GROUP BY visits_2.drug) AS c_2);
-- f0.north
SELECT visits.drug, SUM(visits.cost) AS p0 FROM visits GROUP BY visits.drug ORDER BY visits.drug;
-- f0.south
SELECT visits.drug, SUM(visits.cost) AS p0 FROM visits GROUP BY visits.drug ORDER BY visits.drug;
-- f0.west
SELECT visits.drug, SUM(visits.cost) AS p0 FROM visits GROUP BY visits.drug ORDER BY visits.drug;

-- What keys narrow in one place has other rows in another.
WITH v AS (SELECT drug, cost FROM "all".visits WHERE cost > 3) SELECT d.name, v.cost FROM north.drugs d JOIN v ON v.drug = d.drug WHERE d.price > 2 AND v.cost < (SELECT max(w.cost) FROM v AS w);
-- here
SELECT d.name, visits.cost FROM f1 AS d CROSS JOIN f2 AS visits WHERE visits.drug = d.drug AND visits.cost < (SELECT MAX(visits_2.p0) AS _col_0 FROM f0 AS visits_2);
-- f0.north
SELECT MAX(visits_2.cost) AS p0 FROM visits AS visits_2 WHERE visits_2.cost > 3;
-- f0.south
SELECT MAX(visits_2.cost) AS p0 FROM visits AS visits_2 WHERE visits_2.cost > 3;
-- f0.west
SELECT MAX(visits_2.cost) AS p0 FROM visits AS visits_2 WHERE visits_2.cost > 3;
-- f1
SELECT d.name, d.drug FROM drugs AS d WHERE d.price > 2;
-- f2.north
SELECT visits.cost, visits.drug FROM visits WHERE visits.cost > 3 AND visits.drug IN (SELECT keys_f1_1.k FROM keys_f1_1);
-- f2.south
SELECT visits.cost, visits.drug FROM visits WHERE visits.cost > 3 AND visits.drug IN (SELECT keys_f1_1.k FROM keys_f1_1);
-- f2.west
SELECT visits.cost, visits.drug FROM visits WHERE visits.cost > 3 AND visits.drug IN (SELECT keys_f1_1.k FROM keys_f1_1);
