-- One of several owners is cut into their shares later.
SELECT p.ward FROM "all".patients AS p;
-- here
SELECT p.ward FROM "all".patients AS p;
