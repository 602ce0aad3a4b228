// The certified provider `oidc-provider` on loopback, for tests. Arguments: port, console's address, and the client's
// public JWK set if it authenticates with a key.
// Any user name logs in; its groups are the part of the name after a dot: `ada.data-team`.
import Provider from 'oidc-provider';

const [port, base, jwks] = process.argv.slice(2);
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'hanse',
    ...(jwks
      ? { jwks: JSON.parse(jwks), token_endpoint_auth_method: 'private_key_jwt' }
      : { client_secret: 'a-secret-of-the-test-alone-0123456789' }),
    redirect_uris: [`${base}/login/with/clinic/callback`],
    post_logout_redirect_uris: [`${base}/login`],
    backchannel_logout_uri: `${base}/login/with/clinic/back-channel-logout`,
    backchannel_logout_session_required: true,
  }],
  claims: { openid: ['sub', 'groups'], profile: ['name'] },
  conformIdTokenClaims: false,
  cookies: { keys: ['a-key-of-the-test-alone'] },
  features: { backchannelLogout: { enabled: true } },
  // Its own guard against inner addresses would refuse the console on loopback.
  fetch: (url, options) => fetch(url, { ...options, dispatcher: undefined }),
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, name: id.split('.')[0], groups: [id.split('.')[1]] }),
  }),
});
provider.on('backchannel.error', (_, error) => console.error(error));
provider.listen(Number(port), '127.0.0.1', () => console.log('listening'));
