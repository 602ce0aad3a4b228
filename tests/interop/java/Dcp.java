import java.util.Set;
import org.eclipse.edc.iam.decentralizedclaims.spi.SecureTokenService;
import org.eclipse.edc.iam.decentralizedclaims.sts.remote.RemoteSecureTokenService;
import org.eclipse.edc.iam.decentralizedclaims.sts.remote.StsRemoteClientConfiguration;
import org.eclipse.edc.iam.oauth2.spi.client.Oauth2Client;
import org.eclipse.edc.policy.context.request.spi.RequestCatalogPolicyContext;
import org.eclipse.edc.policy.context.request.spi.RequestContractNegotiationPolicyContext;
import org.eclipse.edc.policy.context.request.spi.RequestPolicyContext;
import org.eclipse.edc.policy.context.request.spi.RequestTransferProcessPolicyContext;
import org.eclipse.edc.policy.engine.spi.PolicyEngine;
import org.eclipse.edc.policy.model.Policy;
import org.eclipse.edc.runtime.metamodel.annotation.Inject;
import org.eclipse.edc.runtime.metamodel.annotation.Provider;
import org.eclipse.edc.spi.security.Vault;
import org.eclipse.edc.spi.system.ServiceExtension;
import org.eclipse.edc.spi.system.ServiceExtensionContext;

/**
 * Decentralized Claims for EDC: its tokens come from the token service of an IdentityHub, and every request asks for a
 * membership credential. EDC has an artifact for the first (not published for 0.15.1); the second is left to its operator.
 * Settings: edc.iam.sts.oauth.token.url, edc.iam.sts.oauth.client.id, interop.secret.
 */
public class Dcp implements ServiceExtension {
    private static final String SCOPE = "org.eclipse.dspace.dcp.vc.type:MembershipCredential:read";

    @Inject private Oauth2Client client;
    @Inject private Vault vault;
    @Inject private PolicyEngine policies;

    @Override
    public String name() {
        return "Decentralized Claims of the interop run";
    }

    @Override
    public void initialize(ServiceExtensionContext context) {
        var participant = context.getConfig().getString("edc.participant.context.id");
        vault.storeSecret(participant, "sts-secret", context.getConfig().getString("interop.secret"));
        policies.registerPostValidator(RequestCatalogPolicyContext.class, Dcp::ask);
        policies.registerPostValidator(RequestContractNegotiationPolicyContext.class, Dcp::ask);
        policies.registerPostValidator(RequestTransferProcessPolicyContext.class, Dcp::ask);
    }

    @Provider
    public SecureTokenService tokens(ServiceExtensionContext context) {
        var config = context.getConfig("edc.iam.sts.oauth");
        var settings = new StsRemoteClientConfiguration(
                config.getString("token.url"), config.getString("client.id"), "sts-secret");
        return new RemoteSecureTokenService(client, participant -> settings, vault);
    }

    private static boolean ask(Policy policy, RequestPolicyContext context) {
        context.requestScopeBuilder().scopes(Set.of(SCOPE));
        return true;
    }
}
