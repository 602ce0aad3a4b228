-- EXISTS and NOT EXISTS by what the shares were cut by are judged at each owner.
SELECT p.ward FROM "all".patients p WHERE EXISTS (SELECT * FROM "all".visits v WHERE v.patient = p.id AND v.cost > 5) AND NOT EXISTS (SELECT 1 FROM "all".visits w WHERE w.patient = p.id AND w.drug <> p.age);
-- here
SELECT p.ward FROM f0 AS p;
-- f0.north
SELECT p.ward FROM patients AS p WHERE EXISTS(SELECT 1 AS one FROM visits AS v WHERE v.patient = p.id AND v.cost > 5) AND NOT EXISTS(SELECT 1 AS one FROM visits AS w WHERE w.patient = p.id AND w.drug <> p.age);
-- f0.south
SELECT p.ward FROM patients AS p WHERE EXISTS(SELECT 1 AS one FROM visits AS v WHERE v.patient = p.id AND v.cost > 5) AND NOT EXISTS(SELECT 1 AS one FROM visits AS w WHERE w.patient = p.id AND w.drug <> p.age);
-- f0.west
SELECT p.ward FROM patients AS p WHERE EXISTS(SELECT 1 AS one FROM visits AS v WHERE v.patient = p.id AND v.cost > 5) AND NOT EXISTS(SELECT 1 AS one FROM visits AS w WHERE w.patient = p.id AND w.drug <> p.age);

-- By anything else they are not: partners may be elsewhere.
SELECT p.ward FROM "all".patients p WHERE NOT EXISTS (SELECT * FROM "all".visits v WHERE v.drug = p.age);
-- here
SELECT p.ward FROM f1 AS p WHERE NOT EXISTS(SELECT 1 AS one FROM f0 AS v WHERE v.drug = p.age);
-- f0.north
SELECT DISTINCT v.drug FROM visits AS v;
-- f0.south
SELECT DISTINCT v.drug FROM visits AS v;
-- f0.west
SELECT DISTINCT v.drug FROM visits AS v;
-- f1.north
SELECT p.ward, p.age FROM patients AS p;
-- f1.south
SELECT p.ward, p.age FROM patients AS p;
-- f1.west
SELECT p.ward, p.age FROM patients AS p;
