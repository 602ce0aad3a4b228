// Runs the conformance kit's cases and says plainly how many passed: the kit's own main prints failures and exits 0.
//
// Usage: java -cp <kit> Runner.java <properties file> <least number of passing cases> [part of a case's name]
// Exit code: 0 all ran cases passed, 1 a case failed, 2 fewer cases passed than the least number (none were found, say).
// It knows nothing of the connector under test.

import static org.junit.platform.engine.discovery.ClassNameFilter.includeClassNamePatterns;
import static org.junit.platform.engine.discovery.DiscoverySelectors.selectPackage;

import java.io.FileReader;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.eclipse.dataspacetck.core.spi.boot.Monitor;
import org.eclipse.dataspacetck.core.system.ConsoleMonitor;
import org.junit.platform.engine.FilterResult;
import org.junit.platform.engine.TestExecutionResult;
import org.junit.platform.engine.support.store.Namespace;
import org.junit.platform.launcher.LauncherDiscoveryRequest;
import org.junit.platform.launcher.LauncherSession;
import org.junit.platform.launcher.LauncherSessionListener;
import org.junit.platform.launcher.PostDiscoveryFilter;
import org.junit.platform.launcher.TestExecutionListener;
import org.junit.platform.launcher.TestIdentifier;
import org.junit.platform.launcher.TestPlan;
import org.junit.platform.launcher.core.LauncherConfig;
import org.junit.platform.launcher.core.LauncherDiscoveryRequestBuilder;
import org.junit.platform.launcher.core.LauncherFactory;

public class Runner {
    /** Packages of the cases, separated by commas: the property `hanse.cases`, or those of the Dataspace Protocol. */
    private static final String CASES = "org.eclipse.dataspacetck.dsp.verification";
    private static final String LAUNCHER = "org.eclipse.dataspacetck.dsp.system.DspSystemLauncher";

    public static void main(String[] arguments) throws IOException {
        load(arguments[0]);
        var least = Integer.parseInt(arguments[1]);
        var count = new Count();
        var config = LauncherConfig.builder().addLauncherSessionListeners(new MonitorInStore()).build();
        LauncherFactory.create(config).execute(request(arguments.length > 2 ? arguments[2] : ""), count);
        System.out.printf("%d passed, %d failed, %d skipped%n", count.passed, count.failed.size(), count.skipped);
        System.out.flush();
        // The kit leaves threads behind; exit does not wait for them.
        System.exit(!count.failed.isEmpty() ? 1 : count.passed < least ? 2 : 0);
    }

    /** The kit reads its settings from system properties. */
    private static void load(String file) throws IOException {
        var properties = new Properties();
        try (var reader = new FileReader(file)) {
            properties.load(reader);
        }
        properties.putIfAbsent("dataspacetck.launcher", LAUNCHER);
        properties.forEach((key, value) -> System.setProperty(key.toString(), value.toString()));
    }

    private static LauncherDiscoveryRequest request(String part) {
        PostDiscoveryFilter wanted = found -> FilterResult.includedIf(
                !found.isTest() || found.getDisplayName().contains(part));
        return LauncherDiscoveryRequestBuilder.request()
                .selectors(Arrays.stream(System.getProperty("hanse.cases", CASES).split(","))
                        .map(name -> selectPackage(name)).toList())
                .filters(includeClassNamePatterns(".*Test"), wanted)
                .build();
    }

    /** Puts the kit's monitor where kits since 1.0.0-RC7 look for it; RC6 makes its own and reads none. */
    private static class MonitorInStore implements LauncherSessionListener {
        @Override
        public void launcherSessionOpened(LauncherSession session) {
            session.getStore().put(Namespace.GLOBAL, Monitor.class.getName(), new ConsoleMonitor(false, false));
        }
    }

    /** Counts cases, and prints one line for each as it ends. */
    private static class Count implements TestExecutionListener {
        final List<String> failed = new ArrayList<>();
        final Map<String, Long> started = new HashMap<>();
        int passed;
        int skipped;
        TestPlan plan;

        @Override
        public void testPlanExecutionStarted(TestPlan testPlan) {
            plan = testPlan;
        }

        @Override
        public void executionStarted(TestIdentifier id) {
            started.put(id.getUniqueId(), System.nanoTime());
        }

        @Override
        public void executionSkipped(TestIdentifier id, String reason) {
            var cases = plan.getDescendants(id).stream().filter(TestIdentifier::isTest).count();
            skipped += id.isTest() ? 1 : (int) cases;
            System.out.printf("SKIP %s (%s)%n", id.getDisplayName(), reason);
        }

        @Override
        public void executionFinished(TestIdentifier id, TestExecutionResult result) {
            if (result.getStatus() == TestExecutionResult.Status.SUCCESSFUL) {
                if (id.isTest()) {
                    passed++;
                    System.out.printf("PASS %s (%.1f s)%n", id.getDisplayName(), seconds(id));
                }
                return;
            }
            // A container that fails (its set-up, say) takes its cases with it: it must not look like a success.
            failed.add(id.getDisplayName());
            var cause = result.getThrowable().map(Runner::root).orElse("no reason given");
            System.out.printf("FAIL %s (%.1f s): %s%n", id.getDisplayName(), seconds(id), cause);
        }

        private double seconds(TestIdentifier id) {
            return (System.nanoTime() - started.getOrDefault(id.getUniqueId(), System.nanoTime())) / 1e9;
        }
    }

    private static String root(Throwable problem) {
        while (problem.getCause() != null) {
            problem = problem.getCause();
        }
        return String.valueOf(problem).lines().findFirst().orElse("");
    }
}
