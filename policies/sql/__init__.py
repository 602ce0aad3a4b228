"""The SQL front end of the gate and the planner: parsing, allowed syntax, name binding."""
