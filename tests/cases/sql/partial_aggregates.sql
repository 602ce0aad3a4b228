-- Counts, sums and averages over a union are merged from each owner's part.
SELECT ward, count(*) AS n, sum(age) AS s, avg(weight) AS w, max(age) AS m FROM "all".patients WHERE age > 50 GROUP BY ward HAVING count(*) > 2 ORDER BY n DESC;
-- here
SELECT patients.ward, TRY_CAST(COALESCE(SUM(patients.p0), 0) AS BIGINT) AS n, SUM(patients.p4) AS s, (TRY_CAST(SUM(patients.p2) AS DOUBLE) / NULLIF(SUM(patients.p3), 0)) AS w, MAX(patients.p1) AS m FROM f0 AS patients GROUP BY patients.ward HAVING TRY_CAST(COALESCE(SUM(patients.p0), 0) AS BIGINT) > 2 ORDER BY n DESC;
-- f0.north
SELECT patients.ward, COUNT(*) AS p0, MAX(patients.age) AS p1, SUM(patients.weight) AS p2, COUNT(patients.weight) AS p3, SUM(patients.age) AS p4 FROM patients WHERE patients.age > 50 GROUP BY patients.ward ORDER BY patients.ward;
-- f0.south
SELECT patients.ward, COUNT(*) AS p0, MAX(patients.age) AS p1, SUM(patients.weight) AS p2, COUNT(patients.weight) AS p3, SUM(patients.age) AS p4 FROM patients WHERE patients.age > 50 GROUP BY patients.ward ORDER BY patients.ward;
-- f0.west
SELECT patients.ward, COUNT(*) AS p0, MAX(patients.age) AS p1, SUM(patients.weight) AS p2, COUNT(patients.weight) AS p3, SUM(patients.age) AS p4 FROM patients WHERE patients.age > 50 GROUP BY patients.ward ORDER BY patients.ward;

-- A union that the question writes itself is the same.
SELECT p.ward, count(*) AS n FROM (SELECT * FROM north.patients UNION ALL SELECT * FROM south.patients) AS p GROUP BY p.ward;
-- here
SELECT p.ward, TRY_CAST(COALESCE(SUM(p.p0), 0) AS BIGINT) AS n FROM f0 AS p GROUP BY p.ward;
-- f0.north
SELECT p.ward, COUNT(*) AS p0 FROM patients AS p GROUP BY p.ward ORDER BY p.ward;
-- f0.south
SELECT p.ward, COUNT(*) AS p0 FROM patients AS p GROUP BY p.ward ORDER BY p.ward;

-- Without GROUP BY every owner gives one row.
SELECT sum(weight) AS w FROM "all".patients;
-- here
SELECT SUM(patients.p0) AS w FROM f0 AS patients;
-- f0.north
SELECT SUM(patients.weight) AS p0 FROM patients;
-- f0.south
SELECT SUM(patients.weight) AS p0 FROM patients;
-- f0.west
SELECT SUM(patients.weight) AS p0 FROM patients;

-- A DISTINCT aggregate makes its argument a key.
SELECT ward, count(DISTINCT age) AS ages, sum(weight) AS w FROM "all".patients GROUP BY ward;
-- here
SELECT patients.ward, COUNT(DISTINCT patients.age) AS ages, SUM(patients.p0) AS w FROM f0 AS patients GROUP BY patients.ward;
-- f0.north
SELECT patients.ward, patients.age, SUM(patients.weight) AS p0 FROM patients GROUP BY patients.ward, patients.age ORDER BY patients.ward;
-- f0.south
SELECT patients.ward, patients.age, SUM(patients.weight) AS p0 FROM patients GROUP BY patients.ward, patients.age ORDER BY patients.ward;
-- f0.west
SELECT patients.ward, patients.age, SUM(patients.weight) AS p0 FROM patients GROUP BY patients.ward, patients.age ORDER BY patients.ward;

-- FILTER goes along.
SELECT count(*) FILTER (WHERE age > 60) AS old FROM "all".patients;
-- here
SELECT TRY_CAST(COALESCE(SUM(patients.p0), 0) AS BIGINT) AS old FROM f0 AS patients;
-- f0.north
SELECT COUNT(*) FILTER(WHERE patients.age > 60) AS p0 FROM patients;
-- f0.south
SELECT COUNT(*) FILTER(WHERE patients.age > 60) AS p0 FROM patients;
-- f0.west
SELECT COUNT(*) FILTER(WHERE patients.age > 60) AS p0 FROM patients;

-- A key that is an expression is computed at the owner.
SELECT year(day) AS y, sum(cost) AS c FROM "all".visits GROUP BY year(day);
-- here
SELECT visits.k0 AS y, SUM(visits.p0) AS c FROM f0 AS visits GROUP BY visits.k0;
-- f0.north
SELECT YEAR(visits.day) AS k0, SUM(visits.cost) AS p0 FROM visits GROUP BY YEAR(visits.day);
-- f0.south
SELECT YEAR(visits.day) AS k0, SUM(visits.cost) AS p0 FROM visits GROUP BY YEAR(visits.day);
-- f0.west
SELECT YEAR(visits.day) AS k0, SUM(visits.cost) AS p0 FROM visits GROUP BY YEAR(visits.day);

-- Shares that differ in a constant keep it.
SELECT x.site, count(*) AS n FROM (SELECT 'n' AS site, age FROM north.patients UNION ALL SELECT 's' AS site, age FROM south.patients) AS x GROUP BY x.site;
-- here
SELECT x.site, TRY_CAST(COALESCE(SUM(x.p0), 0) AS BIGINT) AS n FROM f0 AS x GROUP BY x.site;
-- f0.north
SELECT 'n' AS site, COUNT(*) AS p0 FROM patients AS x HAVING COUNT(*) > 0;
-- f0.south
SELECT 's' AS site, COUNT(*) AS p0 FROM patients AS x HAVING COUNT(*) > 0;

-- A standard deviation has no plain part, so its columns travel.
SELECT stddev(weight) AS w FROM "all".patients;
-- here
SELECT STDDEV(patients.weight) AS w FROM f0 AS patients;
-- f0.north
SELECT patients.weight FROM patients;
-- f0.south
SELECT patients.weight FROM patients;
-- f0.west
SELECT patients.weight FROM patients;

-- ROLLUP is done here, over finer groups.
SELECT ward, count(*) AS n FROM "all".patients GROUP BY ROLLUP (ward);
-- here
SELECT patients.ward, TRY_CAST(COALESCE(SUM(patients.p0), 0) AS BIGINT) AS n FROM f0 AS patients GROUP BY ROLLUP (patients.ward);
-- f0.north
SELECT patients.ward, COUNT(*) AS p0 FROM patients GROUP BY patients.ward ORDER BY patients.ward;
-- f0.south
SELECT patients.ward, COUNT(*) AS p0 FROM patients GROUP BY patients.ward ORDER BY patients.ward;
-- f0.west
SELECT patients.ward, COUNT(*) AS p0 FROM patients GROUP BY patients.ward ORDER BY patients.ward;

-- A correlated subquery is counted at the other owner by its key.
SELECT d.name FROM north.drugs d WHERE 5 < (SELECT count(*) FROM south.trials t WHERE t.drug = d.drug);
-- here
SELECT d.name FROM f1 AS d WHERE 5 < (SELECT TRY_CAST(COALESCE(SUM(t.p0), 0) AS BIGINT) AS _col_0 FROM f0 AS t WHERE t.drug = d.drug);
-- f0
SELECT t.drug, COUNT(*) AS p0 FROM trials AS t WHERE t.drug IN (SELECT keys_f1_1.k FROM keys_f1_1) GROUP BY t.drug ORDER BY t.drug;
-- f1
SELECT d.name, d.drug FROM drugs AS d;

-- Aggregate-only shares are asked for sums and counts by dimensions, whatever is made of them here.
SELECT sex, round(avg(income)) AS income FROM "all".census WHERE age BETWEEN 20 AND 60 GROUP BY sex HAVING avg(income) > 100;
-- here
SELECT census.sex, ROUND((TRY_CAST(SUM(census.p0) AS DOUBLE) / NULLIF(SUM(census.p1), 0))) AS income FROM f0 AS census GROUP BY census.sex HAVING (TRY_CAST(SUM(census.p0) AS DOUBLE) / NULLIF(SUM(census.p1), 0)) > 100;
-- f0.north
SELECT census.sex, SUM(census.income) AS p0, COUNT(census.income) AS p1 FROM census WHERE census.age BETWEEN 20 AND 60 GROUP BY census.sex;
-- f0.south
SELECT census.sex, SUM(census.income) AS p0, COUNT(census.income) AS p1 FROM census WHERE census.age BETWEEN 20 AND 60 GROUP BY census.sex;
-- f0.west
SELECT census.sex, SUM(census.income) AS p0, COUNT(census.income) AS p1 FROM census WHERE census.age BETWEEN 20 AND 60 GROUP BY census.sex;

-- A FILTER on a dimension is applied to the groups here.
SELECT count(*) FILTER (WHERE age > 40) AS old FROM "all".census;
-- here
SELECT TRY_CAST(SUM(census.p0) FILTER(WHERE census.age > 40) AS BIGINT) AS old FROM f0 AS census;
-- f0.north
SELECT census.age, COUNT(*) AS p0 FROM census GROUP BY census.age;
-- f0.south
SELECT census.age, COUNT(*) AS p0 FROM census GROUP BY census.age;
-- f0.west
SELECT census.age, COUNT(*) AS p0 FROM census GROUP BY census.age;
