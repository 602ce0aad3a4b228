-- A WITH query that two places of a fragment read is one there, too.
WITH c AS (SELECT drug, sum(cost) AS total FROM north.visits GROUP BY drug) SELECT drug FROM c WHERE total = (SELECT max(total) FROM c);
-- here
SELECT f0.drug FROM f0;
-- f0
WITH once_0 AS (SELECT visits.drug, SUM(visits.cost) AS total FROM visits GROUP BY visits.drug) SELECT c.drug FROM once_0 AS c WHERE c.total = (SELECT MAX(c_2.total) AS _col_0 FROM once_0 AS c_2);

-- It makes no difference how deep they stand, who wrote them, and how many there are.
SELECT a.drug FROM (SELECT DISTINCT drug FROM north.visits) a JOIN (SELECT DISTINCT v.drug FROM north.visits v) b ON a.drug > b.drug WHERE a.drug IN (SELECT drug FROM (SELECT drug, count(*) AS n FROM north.visits GROUP BY drug) c WHERE n > (SELECT avg(n) FROM (SELECT drug, count(*) AS n FROM north.visits GROUP BY drug) e));
-- here
SELECT f0.drug FROM f0;
-- f0
WITH once_0 AS (SELECT DISTINCT visits.drug FROM visits), once_1 AS (SELECT visits_2.drug, COUNT(*) AS n FROM visits AS visits_2 GROUP BY visits_2.drug) SELECT a.drug FROM once_0 AS a CROSS JOIN once_0 AS b WHERE a.drug > b.drug AND a.drug IN (SELECT c.drug FROM once_1 AS c WHERE c.n > (SELECT AVG(e.n) AS _col_0 FROM once_1 AS e));

-- A set operation is work as well.
SELECT max(u.drug) AS u, max(w.drug) AS w FROM (SELECT drug FROM north.visits UNION SELECT drug FROM north.drugs) u, (SELECT drug FROM north.visits UNION SELECT drug FROM north.drugs) w;
-- here
SELECT f0.u, f0.w FROM f0;
-- f0
WITH once_0 AS (SELECT visits.drug FROM visits UNION SELECT drugs.drug FROM drugs) SELECT MAX(u.drug) AS u, MAX(w.drug) AS w FROM once_0 AS u CROSS JOIN once_0 AS w;

-- Rows that are only picked are scanned twice.
WITH v AS (SELECT drug, cost FROM north.visits WHERE cost > 3) SELECT a.cost FROM v AS a JOIN v AS b ON a.drug = b.drug AND a.cost < b.cost;
-- here
SELECT f0.cost FROM f0;
-- f0
SELECT visits.cost FROM visits CROSS JOIN visits AS visits_2 WHERE visits_2.cost > 3 AND visits.cost > 3 AND visits.drug = visits_2.drug AND visits.cost < visits_2.cost;

-- What depends on a row around it is computed for each.
SELECT d.name, (SELECT count(*) FROM (SELECT DISTINCT cost FROM north.visits v WHERE v.drug = d.drug) a) AS n, (SELECT max(cost) FROM (SELECT DISTINCT cost FROM north.visits v WHERE v.drug = d.drug) a) AS m FROM north.drugs d;
-- here
SELECT f0.name, f0.n, f0.m FROM f0;
-- f0
SELECT d.name, (SELECT COUNT(*) AS _col_0 FROM (SELECT DISTINCT v.cost FROM visits AS v WHERE v.drug = d.drug) AS a) AS n, (SELECT MAX(a_2.cost) AS _col_0 FROM (SELECT DISTINCT v_2.cost FROM visits AS v_2 WHERE v_2.drug = d.drug) AS a_2) AS m FROM drugs AS d;
