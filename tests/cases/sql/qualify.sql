-- A star is written out and every column says its source.
SELECT * FROM north.makers;
-- here
SELECT makers.maker, makers.country FROM north.makers;

-- The same alias in a subquery gets a name of its own.
SELECT d.name FROM north.drugs d WHERE d.drug IN (SELECT d.drug FROM south.trials d);
-- here
SELECT d.name FROM north.drugs AS d WHERE d.drug IN (SELECT d_2.drug FROM south.trials AS d_2);

-- GROUP BY ALL takes every output without an aggregate.
SELECT ward, count(*) AS n FROM north.patients GROUP BY ALL ORDER BY ALL;
-- here
SELECT patients.ward, COUNT(*) AS n FROM north.patients GROUP BY patients.ward ORDER BY ward, n;

-- A dataset that only one owner has is that dataset.
SELECT name FROM "all".drugs;
-- here
SELECT drugs.name FROM north.drugs AS drugs;

-- USING becomes a comparison.
SELECT name, dose FROM north.drugs JOIN south.trials USING (drug);
-- here
SELECT drugs.name, trials.dose FROM north.drugs JOIN south.trials ON drugs.drug = trials.drug;

-- An alias list renames the columns of a dataset.
SELECT t.a FROM north.makers AS t(a, b);
-- here
SELECT t.a FROM (SELECT makers.maker AS a, makers.country AS b FROM north.makers) AS t;

-- A name that two outputs have means the last that is called so, in brackets, too.
SELECT m.*, m.maker AS country FROM north.makers m ORDER BY (country), maker;
-- here
SELECT m.maker, m.country, m.maker AS country FROM north.makers AS m ORDER BY 3, m.maker;

-- A key with a subquery stays one subquery: the output's.
SELECT drug IN (SELECT t.drug FROM south.trials t) AS tried, count(*) AS n FROM north.drugs GROUP BY tried;
-- here
SELECT drugs.drug IN (SELECT t.drug FROM south.trials AS t) AS tried, COUNT(*) AS n FROM north.drugs GROUP BY 1;

-- Of a derived table's outputs, those of one name are called as the engine calls them.
SELECT j.* FROM (SELECT * FROM north.makers a JOIN north.makers b ON b.country = a.country) j WHERE j.maker = 1;
-- here
SELECT j.maker, j.country, j.maker_1, j.country_1 FROM (SELECT a.maker AS maker, a.country AS country, b.maker AS maker_1, b.country AS country_1 FROM north.makers AS a JOIN north.makers AS b ON b.country = a.country) AS j WHERE j.maker = 1;

-- A comma begins another FROM: USING compares, and a name means, what stands on one side of it.
SELECT patient, x.cost FROM north.visits x, south.trials t JOIN north.visits v USING (patient);
-- here
SELECT t.patient, x.cost FROM north.visits AS x, south.trials AS t JOIN north.visits AS v ON t.patient = v.patient;
