-- Places in ORDER BY become names, and of two outputs of one name, the first keeps it.
SELECT m.maker AS a, m.country AS a FROM north.makers m ORDER BY 2, a;
-- here
SELECT m.maker AS a, m.country AS a_1 FROM north.makers AS m ORDER BY a_1, a_1;

-- Of a UNION, the first output of a name is meant.
SELECT maker AS a, drug AS a FROM north.drugs UNION ALL SELECT drug, drug FROM south.trials ORDER BY a, 2;
-- here
SELECT drugs.maker AS a, drugs.drug AS a_1 FROM north.drugs UNION ALL SELECT trials.drug, trials.drug AS drug_1 FROM south.trials ORDER BY a, a_1;
