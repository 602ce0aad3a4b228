// Foreign code for the protocols of witnesses: two verifiers, a witness, and a log.
//
//	witness keygen NAME                         a key of a log: secret and public, in two lines
//	witness verify VKEY_LOG VKEY_WITNESS...     a checkpoint on standard input, by transparency-dev's formats
//	witness policy FILE                         the same by torchwood, with a tlog-policy
//	witness serve ADDRESS VKEY_LOG              a witness by transparency-dev, for one log; prints its keys
//	witness log URL SECRET VKEY_WITNESS...      a log that grows, forks and goes back at the witness under URL
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"filippo.io/torchwood"
	"github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
	client "github.com/transparency-dev/witness/client/http"
	"github.com/transparency-dev/witness/persistence/inmemory"
	"github.com/transparency-dev/witness/witness"
	"golang.org/x/mod/sumdb/note"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("expected a command and its arguments, see the head of main.go")
	}
	switch command, rest := args[0], args[1:]; command {
	case "keygen":
		secret, public, err := note.GenerateKey(rand.Reader, rest[0])
		fmt.Println(secret)
		fmt.Println(public)
		return err
	case "verify":
		return verify(rest[0], rest[1:])
	case "policy":
		return verifyByPolicy(rest[0])
	case "serve":
		return serve(rest[0], rest[1])
	case "log":
		return actAsLog(rest[0], rest[1], rest[2:])
	default:
		return fmt.Errorf("unknown command %q", command)
	}
}

func verify(logKey string, witnessKeys []string) error {
	checkpoint, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(logKey)
	if err != nil {
		return err
	}
	witnesses, err := verifiersOf(witnessKeys)
	if err != nil {
		return err
	}
	head, _, signed, err := log.ParseCheckpoint(checkpoint, verifier.Name(), verifier, witnesses...)
	if err != nil {
		return err
	}
	fmt.Println(head.Size, len(signed.Sigs))
	return nil
}

func verifyByPolicy(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	policy, err := torchwood.ParsePolicy(text)
	if err != nil {
		return err
	}
	checkpoint, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	head, _, err := torchwood.VerifyCheckpoint(checkpoint, policy)
	if err != nil {
		return err
	}
	fmt.Println(head.N)
	return nil
}

func serve(address, logKey string) error {
	verifier, err := note.NewVerifier(logKey)
	if err != nil {
		return err
	}
	secret, public, err := note.GenerateKey(rand.Reader, "foreign.example/witness")
	if err != nil {
		return err
	}
	signer, err := fnote.NewSignerForCosignatureV1(secret)
	if err != nil {
		return err
	}
	if public, err = fnote.VKeyToCosignatureV1(public); err != nil {
		return err
	}
	postQuantumSecret, postQuantumPublic, err := fnote.GenerateMLDSAKey("foreign.example/witness")
	if err != nil {
		return err
	}
	postQuantum, err := fnote.NewMLDSASigner(postQuantumSecret)
	if err != nil {
		return err
	}
	made, err := witness.New(context.Background(), witness.Opts{
		Persistence: inmemory.New(),
		Signers:     []note.Signer{signer, postQuantum},
		VerifierForLog: func(_ context.Context, origin string) (note.Verifier, bool, error) {
			return verifier, origin == verifier.Name(), nil
		},
	})
	if err != nil {
		return err
	}
	fmt.Println(public)
	fmt.Println(postQuantumPublic)
	http.HandleFunc("POST /add-checkpoint", witness.NewHTTPHandler(made).AddCheckpoint)
	return http.ListenAndServe(address, nil)
}

func actAsLog(address, secret string, witnessKeys []string) error {
	at, err := url.Parse(address)
	if err != nil {
		return err
	}
	signer, own, err := fnote.NewEd25519SignerVerifier(secret)
	if err != nil {
		return err
	}
	witnesses, err := verifiersOf(witnessKeys)
	if err != nil {
		return err
	}
	peer := client.NewWitness(at, http.DefaultClient)
	tree, forked := treeOf("a record", 0), treeOf("another record", 0)
	send := func(tree *testonly.Tree, old, size uint64) (string, error) {
		head := log.Checkpoint{Origin: own.Name(), Size: size, Hash: tree.HashAt(size)}
		checkpoint, err := note.Sign(&note.Note{Text: string(head.Marshal())}, signer)
		if err != nil {
			return "", err
		}
		proof := [][]byte{}
		if old > 0 {
			if proof, err = tree.ConsistencyProof(old, size); err != nil {
				return "", err
			}
		}
		lines, known, err := peer.Update(context.Background(), old, checkpoint, proof)
		if err != nil {
			return fmt.Sprintf("%v, known size %d", err, known), nil
		}
		_, _, signed, err := log.ParseCheckpoint(append(checkpoint, lines...), own.Name(), own, witnesses...)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%d cosignatures", len(signed.Sigs)-1), nil
	}
	grow(tree, "a record", 13)
	grow(forked, "another record", 13)
	for _, step := range []struct {
		what      string
		tree      *testonly.Tree
		old, size uint64
	}{
		{"begins", tree, 0, 3}, {"grows", tree, 3, 8}, {"grows again", tree, 8, 13}, {"is sent again", tree, 13, 13},
		{"goes back", tree, 3, 8}, {"forks", forked, 13, 13}, {"forks behind", forked, 8, 13},
	} {
		said, err := send(step.tree, step.old, step.size)
		if err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		fmt.Printf("%s: %s\n", step.what, said)
	}
	return nil
}

func treeOf(record string, size int) *testonly.Tree {
	tree := testonly.New(rfc6962.DefaultHasher)
	grow(tree, record, size)
	return tree
}

func grow(tree *testonly.Tree, record string, size int) {
	for number := int(tree.Size()); number < size; number++ {
		tree.AppendData(fmt.Appendf(nil, "%s %d", record, number))
	}
}

// verifiersOf reads vkeys of cosignatures, of Ed25519 (type 4) or ML-DSA-44 (type 6).
func verifiersOf(keys []string) ([]note.Verifier, error) {
	found := []note.Verifier{}
	for _, key := range keys {
		verifier, err := fnote.NewVerifierForCosignatureV1(key)
		if err != nil {
			postQuantum, other := fnote.NewMLDSAVerifier(key)
			if other != nil {
				return nil, errors.Join(err, other)
			}
			verifier = postQuantum
		}
		found = append(found, verifier)
	}
	return found, nil
}
