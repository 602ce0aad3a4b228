// What kits since 1.0.0-RC7 ask of their runner, as a case of its own that runs with every version of the kit.

package org.eclipse.dataspacetck.dsp.verification;

import static org.junit.jupiter.api.Assertions.assertNotNull;

import org.eclipse.dataspacetck.core.spi.boot.Monitor;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.BeforeAllCallback;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.extension.ExtensionContext;

@ExtendWith(MonitorTest.Reader.class)
class MonitorTest {
    private static Monitor monitor;

    /** Reads the monitor as the kit's SystemBootstrapExtension does. */
    static class Reader implements BeforeAllCallback {
        @Override
        public void beforeAll(ExtensionContext context) {
            var store = context.getStore(ExtensionContext.Namespace.GLOBAL);
            monitor = (Monitor) store.get(Monitor.class.getName());
        }
    }

    @Test
    @DisplayName("RUNNER:01 the session's store has a monitor")
    void monitorIsInStore() {
        assertNotNull(monitor);
    }
}
