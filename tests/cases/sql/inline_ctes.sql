-- A WITH query stands where it is used.
WITH old AS (SELECT id FROM north.patients WHERE age > 80) SELECT count(*) AS n FROM old;
-- here
SELECT COUNT(*) AS n FROM (SELECT patients.id FROM north.patients WHERE patients.age > 80) AS old;

-- Two uses of a stable WITH query are two copies.
WITH d AS (SELECT drug FROM north.drugs) SELECT a.drug FROM d AS a, d AS b WHERE a.drug = b.drug;
-- here
SELECT a.drug FROM (SELECT drugs.drug FROM north.drugs) AS a, (SELECT drugs_2.drug FROM north.drugs AS drugs_2) AS b WHERE a.drug = b.drug;

-- Two uses of a WITH query with LIMIT must see the same rows.
WITH d AS (SELECT drug FROM north.drugs LIMIT 3) SELECT a.drug FROM d AS a, d AS b WHERE a.drug = b.drug;
-- here
WITH w0_d AS (SELECT drugs.drug FROM north.drugs LIMIT 3) SELECT a.drug FROM w0_d AS a, w0_d AS b WHERE a.drug = b.drug;

-- A WITH query may use the one before it.
WITH a AS (SELECT drug FROM north.drugs), b AS (SELECT drug FROM a) SELECT drug FROM b;
-- here
SELECT b.drug FROM (SELECT a.drug FROM (SELECT drugs.drug FROM north.drugs) AS a) AS b;
