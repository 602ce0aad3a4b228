import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.math.BigDecimal;
import java.sql.*;
import java.util.*;

/** What a BI tool asks over JDBC, one answer a line: `java -cp <driver> Ask.java <host:port> <ticket> <table>`. */
public class Ask {
    /** What our docs tell to ask for in place of an unsigned number, which the driver shows as another. */
    static final String UNSIGNED = "CAST(CAST(id + 255 AS UTINYINT) AS BIGINT)";

    interface Set {
        void on(PreparedStatement statement) throws SQLException;
    }

    public static void main(String[] told) throws Exception {
        Properties known = new Properties();
        known.put("token", told[1]);
        known.put("useEncryption", "false");
        String table = told[2];
        try (Connection connection = DriverManager.getConnection("jdbc:arrow-flight-sql://" + told[0], known)) {
            DatabaseMetaData about = connection.getMetaData();
            say("alive", connection.isValid(5));
            say("product", about.getDatabaseProductName());
            say("refused", refused(about));
            say("schemas", rows(about.getSchemas(), "TABLE_SCHEM"));
            say("tables", rows(about.getTables(null, null, "%", null), "TABLE_NAME"));
            say("columns", rows(about.getColumns(null, null, "numbers", "%"), "COLUMN_NAME"));
            say("keys", rows(about.getPrimaryKeys(null, null, "numbers"), "COLUMN_NAME"));
            try (Statement statement = connection.createStatement()) {
                say("read", rows(statement.executeQuery("SELECT id FROM " + table + " ORDER BY id LIMIT 3"), "id"));
                say("unsigned", rows(statement.executeQuery("SELECT " + UNSIGNED + " AS n FROM " + table + " WHERE id = 0"), "n"));
            }
            say("whole", count(connection, table, "id < ?", s -> s.setInt(1, 7)));
            say("again", again(connection, table));
            say("float", count(connection, table, "x >= ?", s -> s.setBigDecimal(1, new BigDecimal("0.5"))));
            say("text", count(connection, table, "name IN (?, ?)", s -> { s.setString(1, "name-1"); s.setString(2, "name-2"); }));
            say("null", count(connection, table, "id = ?", s -> s.setNull(1, Types.BIGINT)));
            say("limit", limited(connection, table));
            say("other", failed(connection, "SELECT * FROM other.secrets"));
        }
    }

    static void say(String what, Object found) {
        System.out.println(what + "=" + found);
    }

    /** Questions without arguments about the database that the driver could not answer. */
    static List<String> refused(DatabaseMetaData about) throws Exception {
        List<String> found = new ArrayList<>();
        for (Method asked : DatabaseMetaData.class.getMethods()) {
            if (asked.getParameterCount() > 0) continue;
            try {
                if (asked.invoke(about) instanceof ResultSet answer) answer.close();
            } catch (InvocationTargetException error) {
                found.add(asked.getName());
            }
        }
        return found;
    }

    static List<String> rows(ResultSet answer, String column) throws SQLException {
        List<String> found = new ArrayList<>();
        try (answer) {
            while (answer.next()) found.add(answer.getString(column));
        }
        return found;
    }

    static String count(Connection connection, String table, String where, Set values) throws SQLException {
        try (PreparedStatement statement =
                connection.prepareStatement("SELECT count(*) AS n FROM " + table + " WHERE " + where)) {
            values.on(statement);
            return rows(statement.executeQuery(), "n").get(0);
        }
    }

    static List<String> again(Connection connection, String table) throws SQLException {
        List<String> found = new ArrayList<>();
        try (PreparedStatement statement =
                connection.prepareStatement("SELECT count(*) AS n FROM " + table + " WHERE id < ?")) {
            for (long most : new long[] {5, 50}) {
                statement.setLong(1, most);
                found.addAll(rows(statement.executeQuery(), "n"));
            }
        }
        return found;
    }

    static int limited(Connection connection, String table) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement("SELECT id FROM " + table + " LIMIT ?")) {
            statement.setInt(1, 4);
            return rows(statement.executeQuery(), "id").size();
        }
    }

    static String failed(Connection connection, String sql) {
        try (Statement statement = connection.createStatement()) {
            statement.executeQuery(sql);
            return "nothing";
        } catch (SQLException error) {
            return error.getMessage().replace("\n", " ");
        }
    }
}
