-- A derived table that only joins and filters is part of the block around it.
SELECT x.name, x.cost * 2 AS c FROM (SELECT d.name, d.price + t.dose AS cost, t.patient FROM north.drugs d JOIN south.trials t ON t.drug = d.drug WHERE t.dose > 1) AS x JOIN north.patients p ON p.id = x.patient;
-- here
SELECT d.name, (d.price + t.dose) * 2 AS c FROM north.drugs AS d CROSS JOIN south.trials AS t CROSS JOIN north.patients AS p WHERE t.drug = d.drug AND t.dose > 1 AND p.id = t.patient;

-- One with an aggregate stays.
SELECT x.n FROM (SELECT count(*) AS n FROM north.drugs) AS x;
-- here
SELECT x.n FROM (SELECT COUNT(*) AS n FROM north.drugs) AS x;

-- One with a constant stays.
SELECT x.k, count(*) AS n FROM (SELECT 1 AS k, d.name FROM north.drugs d) AS x GROUP BY x.k;
-- here
SELECT x.k, COUNT(*) AS n FROM (SELECT 1 AS k, d.name FROM north.drugs AS d) AS x GROUP BY x.k;

-- One that a LEFT join adds stays.
SELECT p.age FROM north.patients p LEFT JOIN (SELECT t.patient FROM south.trials t WHERE t.dose > 1) AS x ON x.patient = p.id;
-- here
SELECT p.age FROM north.patients AS p LEFT JOIN (SELECT t.patient FROM south.trials AS t WHERE t.dose > 1) AS x ON x.patient = p.id;
