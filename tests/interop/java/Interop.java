import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import org.eclipse.edc.connector.controlplane.catalog.spi.policy.CatalogPolicyContext;
import org.eclipse.edc.connector.controlplane.contract.spi.policy.ContractNegotiationPolicyContext;
import org.eclipse.edc.connector.controlplane.contract.spi.policy.TransferProcessPolicyContext;
import org.eclipse.edc.connector.controlplane.transfer.spi.observe.TransferProcessListener;
import org.eclipse.edc.connector.controlplane.transfer.spi.observe.TransferProcessObservable;
import org.eclipse.edc.connector.controlplane.transfer.spi.observe.TransferProcessStartedData;
import org.eclipse.edc.connector.controlplane.transfer.spi.types.TransferProcess;
import org.eclipse.edc.connector.dataplane.spi.Endpoint;
import org.eclipse.edc.connector.dataplane.spi.iam.DataPlaneAuthorizationService;
import org.eclipse.edc.connector.dataplane.spi.iam.PublicEndpointGeneratorService;
import org.eclipse.edc.policy.engine.spi.PolicyEngine;
import org.eclipse.edc.policy.engine.spi.RuleBindingRegistry;
import org.eclipse.edc.policy.model.Permission;
import org.eclipse.edc.runtime.metamodel.annotation.Inject;
import org.eclipse.edc.spi.security.Vault;
import org.eclipse.edc.spi.system.ServiceExtension;
import org.eclipse.edc.spi.system.ServiceExtensionContext;
import org.eclipse.edc.web.jetty.JettyService;
import org.eclipse.edc.web.spi.WebServer;

/**
 * What EDC 0.15 leaves to its operator: the public endpoint of a pull, keys in the vault, listeners on loopback, and the
 * received data addresses, and functions for the words of its policies, which hold for anybody. Settings: interop.port, interop.private and interop.public (PEM files).
 */
public class Interop implements ServiceExtension {
    @Inject private Vault vault;
    @Inject private WebServer web;
    @Inject private PublicEndpointGeneratorService endpoints;
    @Inject private DataPlaneAuthorizationService tokens;
    @Inject private TransferProcessObservable transfers;
    @Inject private PolicyEngine policies;
    @Inject private RuleBindingRegistry bindings;

    private final Map<String, Map<String, Object>> addresses = new ConcurrentHashMap<>();
    private final HttpClient http = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private HttpServer server;

    @Override
    public String name() {
        return "Interop";
    }

    @Override
    public void initialize(ServiceExtensionContext context) {
        int port = Integer.parseInt(context.getConfig().getString("interop.port"));
        if (web instanceof JettyService jetty) {
            jetty.addConnectorConfigurationCallback(connector -> connector.setHost("127.0.0.1"));
        }
        try {
            vault.storeSecret("private", Files.readString(Path.of(context.getConfig().getString("interop.private"))));
            vault.storeSecret("public", Files.readString(Path.of(context.getConfig().getString("interop.public"))));
            server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
        var odrl = "http://www.w3.org/ns/odrl/2/";
        var scopes = List.of("catalog", "contract.negotiation", "transfer.process");
        for (var action : List.of(odrl + "delete", odrl + "distribute")) {
            scopes.forEach(scope -> bindings.bind(action, scope));
        }
        for (var word : List.of(odrl + "purpose", "https://edc.example/ns/tier")) {
            scopes.forEach(scope -> bindings.bind(word, scope));
            policies.registerFunction(CatalogPolicyContext.class, Permission.class, word, (a, b, c, d) -> true);
            policies.registerFunction(ContractNegotiationPolicyContext.class, Permission.class, word, (a, b, c, d) -> true);
            policies.registerFunction(TransferProcessPolicyContext.class, Permission.class, word, (a, b, c, d) -> true);
        }
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/public", this::serve);
        server.createContext("/addresses/", this::tell);
        endpoints.addGeneratorFunction("HttpData", address -> Endpoint.url("http://127.0.0.1:" + port + "/public"));
        transfers.registerListener(new TransferProcessListener() {
            @Override
            public void started(TransferProcess process, TransferProcessStartedData data) {
                if (data.getDataAddress() != null) {
                    addresses.put(process.getId(), data.getDataAddress().getProperties());
                }
            }
        });
    }

    @Override
    public void start() {
        server.start();
    }

    @Override
    public void shutdown() {
        server.stop(0);
    }

    /** The public endpoint: the source's bytes for whoever has a valid token. */
    private void serve(HttpExchange exchange) throws IOException {
        String token = exchange.getRequestHeaders().getFirst("Authorization");
        var found = tokens.authorize(token == null ? "" : token, Map.of());
        if (found.failed()) {
            answer(exchange, 403, "text/plain", found.getFailureDetail().getBytes());
            return;
        }
        Object source = found.getContent().getProperties().get("https://w3id.org/edc/v0.0.1/ns/baseUrl");
        try {
            var request = HttpRequest.newBuilder(URI.create(String.valueOf(source))).build();
            var reply = http.send(request, HttpResponse.BodyHandlers.ofByteArray());
            answer(exchange, reply.statusCode(), "text/csv", reply.body());
        } catch (InterruptedException | RuntimeException error) {
            answer(exchange, 502, "text/plain", String.valueOf(error).getBytes());
        }
    }

    /** The data address that the provider of a transfer has sent, as JSON. */
    private void tell(HttpExchange exchange) throws IOException {
        var found = addresses.get(exchange.getRequestURI().getPath().substring("/addresses/".length()));
        answer(exchange, found == null ? 404 : 200, "application/json", new ObjectMapper().writeValueAsBytes(found));
    }

    private static void answer(HttpExchange exchange, int status, String media, byte[] body) throws IOException {
        exchange.getResponseHeaders().add("Content-Type", media);
        exchange.sendResponseHeaders(status, body.length == 0 ? -1 : body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }
}
