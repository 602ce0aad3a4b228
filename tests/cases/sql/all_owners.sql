-- Columns go by name, in the order of the first owner.
SELECT ward FROM "all".patients AS p;
-- here
SELECT ward FROM (SELECT id, age, ward, weight FROM north.patients UNION ALL SELECT id, age, ward, weight FROM south.patients UNION ALL SELECT id, age, ward, weight FROM west.patients) AS p;

-- A dataset that only one owner has is that dataset.
SELECT name FROM "all".drugs;
-- here
SELECT name FROM (SELECT drug, name, maker, price FROM north.drugs) AS drugs;
