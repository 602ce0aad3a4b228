-- The larger side is grouped before it is joined, by what is still needed of it.
SELECT d.name, sum(t.dose) AS s, count(*) AS n FROM north.drugs d JOIN south.trials t ON t.drug = d.drug GROUP BY d.name;
-- here
SELECT d.name, SUM(t.p1) AS s, TRY_CAST(COALESCE(SUM(t.p0), 0) AS BIGINT) AS n FROM f1 AS d CROSS JOIN f0 AS t WHERE t.drug = d.drug GROUP BY d.name;
-- f0
SELECT t.drug, COUNT(*) AS p0, SUM(t.dose) AS p1 FROM trials AS t WHERE t.drug IN (SELECT keys_f1_1.k FROM keys_f1_1) GROUP BY t.drug ORDER BY t.drug;
-- f1
SELECT d.name, d.drug FROM drugs AS d;

-- What is summed of the other side is weighed with the rows that a group stands for.
SELECT m.country, sum(t.dose) AS s, avg(m.maker) AS a, max(m.maker) AS m FROM north.makers m JOIN south.trials t ON t.drug = m.maker GROUP BY m.country;
-- here
SELECT m.country, SUM(t.p1) AS s, (TRY_CAST(SUM(TRY_CAST(m.maker AS INT128) * t.p0) AS DOUBLE) / NULLIF(SUM(CASE WHEN m.maker IS NULL THEN 0 ELSE t.p0 END), 0)) AS a, MAX(m.maker) AS m FROM f1 AS m CROSS JOIN f0 AS t WHERE t.drug = m.maker GROUP BY m.country;
-- f0
SELECT t.drug, COUNT(*) AS p0, SUM(t.dose) AS p1 FROM trials AS t WHERE t.drug IN (SELECT keys_f1_1.k FROM keys_f1_1) GROUP BY t.drug ORDER BY t.drug;
-- f1
SELECT m.country, m.maker FROM makers AS m;

-- The joined side of a LEFT join, too: no group is one row.
SELECT d.name, count(t.dose) AS n, count(*) AS r FROM north.drugs d LEFT JOIN south.trials t ON t.drug = d.drug GROUP BY d.name;
-- here
SELECT d.name, TRY_CAST(COALESCE(SUM(t.p1), 0) AS BIGINT) AS n, TRY_CAST(COALESCE(SUM(COALESCE(t.p0, 1)), 0) AS BIGINT) AS r FROM f1 AS d LEFT JOIN f0 AS t ON t.drug = d.drug GROUP BY d.name;
-- f0
SELECT t.drug, COUNT(*) AS p0, COUNT(t.dose) AS p1 FROM trials AS t WHERE t.drug IN (SELECT keys_f1_1.k FROM keys_f1_1) GROUP BY t.drug ORDER BY t.drug;
-- f1
SELECT d.name, d.drug FROM drugs AS d;

-- Not where an aggregate could count a row that the join made of nothing.
SELECT d.name, count(*) FILTER (WHERE t.dose IS NULL) AS n FROM north.drugs d LEFT JOIN south.trials t ON t.drug = d.drug GROUP BY d.name;
-- here
SELECT d.name, COUNT(*) FILTER(WHERE t.dose IS NULL) AS n FROM f0 AS d LEFT JOIN f1 AS t ON t.drug = d.drug GROUP BY d.name;
-- f0
SELECT d.name, d.drug FROM drugs AS d;
-- f1
SELECT t.dose, t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f0_1.k FROM keys_f0_1);

-- Not where an aggregate takes columns of both sides.
SELECT d.name, sum(t.dose * d.price) AS s FROM north.drugs d JOIN south.trials t ON t.drug = d.drug GROUP BY d.name;
-- here
SELECT d.name, SUM(t.dose * d.price) AS s FROM f0 AS d CROSS JOIN f1 AS t WHERE t.drug = d.drug GROUP BY d.name;
-- f0
SELECT d.name, d.price, d.drug FROM drugs AS d;
-- f1
SELECT t.dose, t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f0_2.k FROM keys_f0_2);

-- Not where there would be about as many groups as rows.
SELECT d.name, t.patient, sum(t.dose) AS s FROM north.drugs d JOIN south.trials t ON t.drug = d.drug GROUP BY d.name, t.patient;
-- here
SELECT d.name, t.patient, SUM(t.dose) AS s FROM f0 AS d CROSS JOIN f1 AS t WHERE t.drug = d.drug GROUP BY d.name, t.patient;
-- f0
SELECT d.name, d.drug FROM drugs AS d;
-- f1
SELECT t.patient, t.dose, t.drug FROM trials AS t WHERE t.drug IN (SELECT keys_f0_1.k FROM keys_f0_1);
