"""The generic SQL front end for gate and planner: parsing, allowed syntax, name binding."""
