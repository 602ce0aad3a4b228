import com.fasterxml.jackson.core.type.TypeReference;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import org.eclipse.edc.iam.did.spi.document.Service;
import org.eclipse.edc.iam.verifiablecredentials.spi.model.CredentialFormat;
import org.eclipse.edc.iam.verifiablecredentials.spi.model.VerifiableCredential;
import org.eclipse.edc.iam.verifiablecredentials.spi.model.VerifiableCredentialContainer;
import org.eclipse.edc.identityhub.spi.participantcontext.ParticipantContextService;
import org.eclipse.edc.identityhub.spi.participantcontext.model.KeyDescriptor;
import org.eclipse.edc.identityhub.spi.participantcontext.model.KeyPairUsage;
import org.eclipse.edc.identityhub.spi.participantcontext.model.ParticipantManifest;
import org.eclipse.edc.identityhub.spi.transformation.ScopeToCriterionTransformer;
import org.eclipse.edc.identityhub.spi.verifiablecredentials.model.VcStatus;
import org.eclipse.edc.identityhub.spi.verifiablecredentials.model.VerifiableCredentialResource;
import org.eclipse.edc.identityhub.spi.verifiablecredentials.store.CredentialStore;
import org.eclipse.edc.runtime.metamodel.annotation.Inject;
import org.eclipse.edc.runtime.metamodel.annotation.Provider;
import org.eclipse.edc.spi.query.Criterion;
import org.eclipse.edc.spi.result.Result;
import org.eclipse.edc.spi.security.Vault;
import org.eclipse.edc.spi.system.ServiceExtension;
import org.eclipse.edc.spi.system.ServiceExtensionContext;
import org.eclipse.edc.spi.system.configuration.Config;
import org.eclipse.edc.transform.spi.TypeTransformerRegistry;
import org.eclipse.edc.web.jetty.JettyService;
import org.eclipse.edc.web.spi.WebServer;

/**
 * Seeds an IdentityHub with one participant, its key and its credential, and keeps its listeners on loopback. Settings:
 * interop.did, interop.issuer, interop.credentials (address of its credential service), interop.secret (of its token
 * service), interop.key (file with a private JWK), interop.credential (file with a JWT).
 */
public class Hub implements ServiceExtension {
    private static final String PARTICIPANT = "edc";
    private static final Set<String> ALIASES = Set.of("org.eclipse.dspace.dcp.vc.type", "org.eclipse.edc.vc.type");

    @Inject private Vault vault;
    @Inject private WebServer web;
    @Inject private ParticipantContextService participants;
    @Inject private CredentialStore credentials;
    @Inject private TypeTransformerRegistry transformers;

    private Config config;

    @Override
    public String name() {
        return "IdentityHub of the interop run";
    }

    /** IdentityHub's own reader of scopes knows an alias of its own alone, not that of Decentralized Claims 1.0. */
    @Provider
    public ScopeToCriterionTransformer scopes() {
        return scope -> {
            var parts = scope.split(":");
            return parts.length == 3 && ALIASES.contains(parts[0]) && parts[2].equals("read")
                    ? Result.success(new Criterion("verifiableCredential.credential.type", "contains", parts[1]))
                    : Result.failure("expected a scope such as org.eclipse.dspace.dcp.vc.type:X:read, got " + scope);
        };
    }

    @Override
    public void initialize(ServiceExtensionContext context) {
        config = context.getConfig("interop");
        if (web instanceof JettyService jetty) {
            jetty.addConnectorConfigurationCallback(connector -> connector.setHost("127.0.0.1"));
        }
    }

    /** Other extensions publish the DID and store the key when a participant is created; now all of them listen. */
    @Override
    public void start() {
        try {
            participate();
            hold(Files.readString(Path.of(config.getString("credential"))));
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
    }

    private void participate() throws IOException {
        var key = Files.readString(Path.of(config.getString("key")));
        Map<String, Object> jwk = new ObjectMapper().readValue(key, new TypeReference<>() {});
        jwk.remove("d");
        vault.storeSecret(PARTICIPANT, "key", key).orElseThrow(failure -> refused(failure.getFailureDetail()));
        var manifest = ParticipantManifest.Builder.newInstance()
                .participantContextId(PARTICIPANT)
                .did(config.getString("did"))
                .active(true)
                .serviceEndpoint(new Service("credentials", "CredentialService", config.getString("credentials")))
                .key(KeyDescriptor.Builder.newInstance()
                        .usage(Set.of(KeyPairUsage.PRESENTATION_SIGNING, KeyPairUsage.TOKEN_SIGNING))
                        .publicKeyJwk(jwk)
                        .privateKeyAlias("key")
                        .keyId(String.valueOf(jwk.get("kid")))
                        .build())
                .build();
        participants.createParticipantContext(manifest).orElseThrow(failure -> refused(failure.getFailureDetail()));
        vault.storeSecret(PARTICIPANT, manifest.clientSecretAlias(), config.getString("secret"));
    }

    private void hold(String jwt) {
        var read = transformers.transform(jwt, VerifiableCredential.class)
                .orElseThrow(failure -> refused(failure.getFailureDetail()));
        credentials.create(VerifiableCredentialResource.Builder.newHolder()
                .participantContextId(PARTICIPANT)
                .holderId(config.getString("did"))
                .issuerId(config.getString("issuer"))
                .state(VcStatus.ISSUED)
                .credential(new VerifiableCredentialContainer(jwt, CredentialFormat.VC1_0_JWT, read))
                .build()).orElseThrow(failure -> refused(failure.getFailureDetail()));
    }

    private static IllegalStateException refused(String reason) {
        return new IllegalStateException("IdentityHub could not be seeded: " + reason);
    }
}
