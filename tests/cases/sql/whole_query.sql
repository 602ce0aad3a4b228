-- A question about one owner runs there whole.
SELECT m.country, avg(d.price) AS price FROM north.drugs d JOIN north.makers m ON m.maker = d.maker GROUP BY m.country ORDER BY price DESC LIMIT 3;
-- here
SELECT f0.country, f0.price FROM f0 ORDER BY f0.price DESC;
-- f0
SELECT m.country, AVG(d.price) AS price FROM drugs AS d CROSS JOIN makers AS m WHERE m.maker = d.maker GROUP BY m.country ORDER BY price DESC LIMIT 3;

-- An order by something that is not shown is kept in a hidden column.
SELECT name FROM north.drugs ORDER BY price;
-- here
SELECT f0.name FROM f0 ORDER BY f0.order_0;
-- f0
SELECT drugs.name, drugs.price AS order_0 FROM drugs ORDER BY drugs.price;

-- A subquery about one owner runs there, the rest elsewhere.
SELECT t.dose FROM south.trials t WHERE t.dose > (SELECT max(d.price) FROM north.drugs d);
-- here
SELECT t.dose FROM f1 AS t WHERE t.dose > (SELECT f0._col_0 FROM f0);
-- f0
SELECT MAX(d.price) AS _col_0 FROM drugs AS d;
-- f1
SELECT t.dose FROM trials AS t;

-- A side of a UNION runs at its owner.
SELECT drug FROM north.drugs UNION SELECT drug FROM south.trials WHERE dose > 2;
-- here
SELECT f0.drug FROM f0 UNION SELECT f1.drug FROM f1;
-- f0
SELECT DISTINCT drugs.drug FROM drugs;
-- f1
SELECT DISTINCT trials.drug FROM trials WHERE trials.dose > 2;

-- A copy that every owner has is read where the rest is.
SELECT t.dose, c.word FROM south.trials t JOIN north.codes c ON c.code = t.drug;
-- here
SELECT f0.dose, f0.word FROM f0;
-- f0
SELECT t.dose, c.word FROM trials AS t CROSS JOIN codes AS c WHERE c.code = t.drug;
