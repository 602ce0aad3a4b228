-- A comparison with the joined source throws its NULL rows away.
SELECT d.name FROM north.drugs d LEFT JOIN south.trials t ON t.drug = d.drug WHERE t.dose > 1;
-- here
SELECT d.name FROM north.drugs AS d JOIN south.trials AS t ON t.drug = d.drug WHERE t.dose > 1;

-- IS NULL does not.
SELECT d.name FROM north.drugs d LEFT JOIN south.trials t ON t.drug = d.drug WHERE t.dose IS NULL;
-- here
SELECT d.name FROM north.drugs AS d LEFT JOIN south.trials AS t ON t.drug = d.drug WHERE t.dose IS NULL;

-- A condition that holds for a NULL as well does not.
SELECT d.name FROM north.drugs d LEFT JOIN south.trials t ON t.drug = d.drug WHERE coalesce(t.dose, 0) < 1;
-- here
SELECT d.name FROM north.drugs AS d LEFT JOIN south.trials AS t ON t.drug = d.drug WHERE COALESCE(t.dose, 0) < 1;

-- A join that the next one needs becomes inner, too.
SELECT d.name FROM north.drugs d LEFT JOIN south.trials t ON t.drug = d.drug LEFT JOIN north.codes c ON c.code = t.drug WHERE c.word LIKE 'a%';
-- here
SELECT d.name FROM north.drugs AS d JOIN south.trials AS t ON t.drug = d.drug JOIN north.codes AS c ON c.code = t.drug WHERE c.word LIKE 'a%';
