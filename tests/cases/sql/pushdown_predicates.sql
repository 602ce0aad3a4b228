-- A condition on a key of a derived table holds for its rows.
SELECT x.n FROM (SELECT t.drug, count(*) AS n, max(d.price) AS m FROM south.trials t, north.drugs d WHERE d.drug = t.drug GROUP BY t.drug) AS x WHERE x.drug = 3 AND x.n > 2;
-- here
SELECT x.n FROM (SELECT t.drug, COUNT(*) AS n, MAX(d.price) AS m FROM south.trials AS t CROSS JOIN north.drugs AS d WHERE d.drug = t.drug AND t.drug = 3 GROUP BY t.drug) AS x WHERE x.drug = 3 AND x.n > 2;

-- A condition on an output of DISTINCT does, too.
SELECT x.name FROM (SELECT DISTINCT d.name, t.dose FROM south.trials t, north.drugs d WHERE d.drug = t.drug) AS x WHERE x.dose > 3;
-- here
SELECT x.name FROM (SELECT DISTINCT d.name, t.dose FROM south.trials AS t CROSS JOIN north.drugs AS d WHERE d.drug = t.drug AND t.dose > 3) AS x WHERE x.dose > 3;

-- Both sides of a set operation take it, by position.
SELECT x.drug FROM (SELECT d.drug FROM north.drugs d, south.trials t WHERE t.drug = d.drug EXCEPT SELECT c.code FROM north.codes c) AS x WHERE x.drug > 3;
-- here
SELECT x.drug FROM (SELECT d.drug FROM north.drugs AS d CROSS JOIN south.trials AS t WHERE t.drug = d.drug AND d.drug > 3 EXCEPT SELECT c.code FROM north.codes AS c WHERE c.code > 3) AS x WHERE x.drug > 3;

-- Nothing goes below a LIMIT.
SELECT x.name FROM (SELECT d.name FROM north.drugs d, south.trials t WHERE t.drug = d.drug LIMIT 5) AS x WHERE x.name = 'a';
-- here
SELECT x.name FROM (SELECT d.name FROM north.drugs AS d CROSS JOIN south.trials AS t WHERE t.drug = d.drug LIMIT 5) AS x WHERE x.name = 'a';

-- A window keeps what it looks at.
SELECT x.r FROM (SELECT t.drug, t.patient, rank() OVER (PARTITION BY t.drug ORDER BY d.price) AS r FROM south.trials t, north.drugs d WHERE d.drug = t.drug) AS x WHERE x.drug = 3 AND x.patient = 2;
-- here
SELECT x.r FROM (SELECT t.drug, t.patient, RANK() OVER (PARTITION BY t.drug ORDER BY d.price) AS r FROM south.trials AS t CROSS JOIN north.drugs AS d WHERE d.drug = t.drug AND t.drug = 3) AS x WHERE x.drug = 3 AND x.patient = 2;
