-- Groups that hold one value of the cut are final at their owner.
SELECT patient, count(DISTINCT drug) AS drugs, stddev(cost) AS c FROM "all".visits GROUP BY patient HAVING sum(cost) > 9 ORDER BY drugs DESC LIMIT 4;
-- here
SELECT f0.c0 AS patient, f0.c1 AS drugs, f0.c2 AS c FROM f0 ORDER BY drugs DESC LIMIT 4;
-- f0.north
SELECT visits.patient AS c0, COUNT(DISTINCT visits.drug) AS c1, STDDEV(visits.cost) AS c2 FROM visits GROUP BY visits.patient HAVING SUM(visits.cost) > 9;
-- f0.south
SELECT visits.patient AS c0, COUNT(DISTINCT visits.drug) AS c1, STDDEV(visits.cost) AS c2 FROM visits GROUP BY visits.patient HAVING SUM(visits.cost) > 9;
-- f0.west
SELECT visits.patient AS c0, COUNT(DISTINCT visits.drug) AS c1, STDDEV(visits.cost) AS c2 FROM visits GROUP BY visits.patient HAVING SUM(visits.cost) > 9;

-- Windows that keep to the cut are, too.
SELECT patient, day, row_number() OVER (PARTITION BY patient ORDER BY day) AS nth FROM "all".visits QUALIFY nth = 1;
-- here
SELECT f0.c0 AS patient, f0.c1 AS day, f0.c2 AS nth FROM f0;
-- f0.north
SELECT visits.patient AS c0, visits.day AS c1, ROW_NUMBER() OVER (PARTITION BY visits.patient ORDER BY visits.day) AS c2 FROM visits QUALIFY ROW_NUMBER() OVER (PARTITION BY visits.patient ORDER BY visits.day) = 1;
-- f0.south
SELECT visits.patient AS c0, visits.day AS c1, ROW_NUMBER() OVER (PARTITION BY visits.patient ORDER BY visits.day) AS c2 FROM visits QUALIFY ROW_NUMBER() OVER (PARTITION BY visits.patient ORDER BY visits.day) = 1;
-- f0.west
SELECT visits.patient AS c0, visits.day AS c1, ROW_NUMBER() OVER (PARTITION BY visits.patient ORDER BY visits.day) AS c2 FROM visits QUALIFY ROW_NUMBER() OVER (PARTITION BY visits.patient ORDER BY visits.day) = 1;

-- Not where a group may have rows at several owners.
SELECT drug, count(*) AS n FROM "all".visits GROUP BY drug;
-- here
SELECT visits.drug, TRY_CAST(COALESCE(SUM(visits.p0), 0) AS BIGINT) AS n FROM f0 AS visits GROUP BY visits.drug;
-- f0.north
SELECT visits.drug, COUNT(*) AS p0 FROM visits GROUP BY visits.drug ORDER BY visits.drug;
-- f0.south
SELECT visits.drug, COUNT(*) AS p0 FROM visits GROUP BY visits.drug ORDER BY visits.drug;
-- f0.west
SELECT visits.drug, COUNT(*) AS p0 FROM visits GROUP BY visits.drug ORDER BY visits.drug;

-- Nor where a window may.
SELECT patient, rank() OVER (ORDER BY cost) AS place FROM "all".visits;
-- here
SELECT visits.patient, RANK() OVER (ORDER BY visits.cost) AS place FROM f0 AS visits;
-- f0.north
SELECT visits.patient, visits.cost FROM visits;
-- f0.south
SELECT visits.patient, visits.cost FROM visits;
-- f0.west
SELECT visits.patient, visits.cost FROM visits;

-- Shares joined by the cut stay together.
SELECT p.id, median(v.cost) AS m FROM "all".patients p JOIN "all".visits v ON v.patient = p.id GROUP BY p.id ORDER BY count(*);
-- here
SELECT f0.c0 AS id, f0.c1 AS m FROM f0 ORDER BY f0.c2;
-- f0.north
SELECT p.id AS c0, MEDIAN(v.cost) AS c1, COUNT(*) AS c2 FROM patients AS p, visits AS v WHERE v.patient = p.id GROUP BY p.id;
-- f0.south
SELECT p.id AS c0, MEDIAN(v.cost) AS c1, COUNT(*) AS c2 FROM patients AS p, visits AS v WHERE v.patient = p.id GROUP BY p.id;
-- f0.west
SELECT p.id AS c0, MEDIAN(v.cost) AS c1, COUNT(*) AS c2 FROM patients AS p, visits AS v WHERE v.patient = p.id GROUP BY p.id;

-- An order by place is that of the output there, also where another has the same name.
SELECT patient, count(*) AS n, count(DISTINCT drug) AS n FROM "all".visits GROUP BY patient ORDER BY 2 DESC LIMIT 4;
-- here
SELECT f0.c0 AS patient, f0.c1 AS n, f0.c2 AS n FROM f0 ORDER BY 2 DESC LIMIT 4;
-- f0.north
SELECT visits.patient AS c0, COUNT(*) AS c1, COUNT(DISTINCT visits.drug) AS c2 FROM visits GROUP BY visits.patient;
-- f0.south
SELECT visits.patient AS c0, COUNT(*) AS c1, COUNT(DISTINCT visits.drug) AS c2 FROM visits GROUP BY visits.patient;
-- f0.west
SELECT visits.patient AS c0, COUNT(*) AS c1, COUNT(DISTINCT visits.drug) AS c2 FROM visits GROUP BY visits.patient;
