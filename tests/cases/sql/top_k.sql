-- The first rows of a union are among the first of each share.
SELECT id, age FROM "all".patients WHERE ward = 'a' ORDER BY age DESC LIMIT 5 OFFSET 2;
-- here
SELECT patients.id, patients.age FROM f0 AS patients ORDER BY age DESC LIMIT 5 OFFSET 2;
-- f0.north
SELECT patients.id, patients.age FROM patients WHERE patients.ward = 'a' ORDER BY patients.age DESC LIMIT 7;
-- f0.south
SELECT patients.id, patients.age FROM patients WHERE patients.ward = 'a' ORDER BY patients.age DESC LIMIT 7;
-- f0.west
SELECT patients.id, patients.age FROM patients WHERE patients.ward = 'a' ORDER BY patients.age DESC LIMIT 7;

-- A LIMIT without order takes any rows.
SELECT id FROM "all".patients LIMIT 3;
-- here
SELECT patients.id FROM f0 AS patients LIMIT 3;
-- f0.north
SELECT patients.id FROM patients LIMIT 3;
-- f0.south
SELECT patients.id FROM patients LIMIT 3;
-- f0.west
SELECT patients.id FROM patients LIMIT 3;

-- Not where a condition is left to do here.
SELECT p.id FROM "all".patients p WHERE p.age > (SELECT avg(d.price) FROM north.drugs d) ORDER BY p.age LIMIT 3;
-- here
SELECT p.id FROM f1 AS p WHERE p.age > (SELECT f0._col_0 FROM f0) ORDER BY p.age LIMIT 3;
-- f0
SELECT AVG(d.price) AS _col_0 FROM drugs AS d;
-- f1.north
SELECT p.id, p.age FROM patients AS p;
-- f1.south
SELECT p.id, p.age FROM patients AS p;
-- f1.west
SELECT p.id, p.age FROM patients AS p;

-- An order by place goes along, also where another output has the same name.
SELECT id, age, -age AS age FROM "all".patients ORDER BY 3, 1 LIMIT 3;
-- here
SELECT patients.id, patients.age, -patients.age AS age FROM f0 AS patients ORDER BY 3, id LIMIT 3;
-- f0.north
SELECT patients.id, patients.age FROM patients ORDER BY -patients.age, patients.id LIMIT 3;
-- f0.south
SELECT patients.id, patients.age FROM patients ORDER BY -patients.age, patients.id LIMIT 3;
-- f0.west
SELECT patients.id, patients.age FROM patients ORDER BY -patients.age, patients.id LIMIT 3;
