-- A dataset that only one owner has is that dataset.
SELECT name FROM "all".drugs;
-- here
SELECT name FROM north.drugs AS drugs;

-- One of several owners is cut into their shares later.
SELECT p.ward FROM "all".patients AS p;
-- here
SELECT p.ward FROM "all".patients AS p;
