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

-- USING becomes a comparison.
SELECT name, dose FROM north.drugs JOIN south.trials USING (drug);
-- here
SELECT drugs.name, trials.dose FROM north.drugs JOIN south.trials ON drugs.drug = trials.drug;

-- An alias list renames the columns of a dataset.
SELECT t.a FROM north.makers AS t(a, b);
-- here
SELECT t.a FROM (SELECT makers.maker AS a, makers.country AS b FROM north.makers) AS t;
