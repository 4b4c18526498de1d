package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
)

// Role is what a token lets its holder do.
type Role string

const (
	Viewer   Role = "viewer"   // read
	Operator Role = "operator" // read and write
)

// Identity is who asks.
type Identity struct {
	Name string
	Role Role
}

// Tokens knows who holds which token. It keeps no token: each is read from its file when
// it is asked for, and only its digest is compared.
type Tokens struct {
	all []Token
	log *slog.Logger

	mu  sync.Mutex
	ill map[string]string // by name: what is wrong with the file, and was said
}

// OpenTokens reads the files of all tokens once, and refuses those that are not right.
func OpenTokens(c Config, log *slog.Logger) (*Tokens, error) {
	t := &Tokens{all: c.Tokens, log: log, ill: map[string]string{}}
	var errs []error
	var digests []digest
	for i, token := range t.all {
		d, err := readToken(token.File)
		if err != nil {
			errs = append(errs, fmt.Errorf("admin.tokens[%d].file: %w", i, err))
			continue
		}
		if other := match(d, digests); other >= 0 {
			errs = append(errs, fmt.Errorf("admin.tokens[%d].file: %s holds the token of another file, so nobody could tell whose it is; make a new one: openssl rand -hex 32", i, token.File))
		}
		digests = append(digests, d)
	}
	return t, errors.Join(errs...)
}

// digest of a token. It cannot be compared with ==, which would stop at the first byte
// that differs and so tell how much of a guess is right.
type digest struct {
	sum [sha256.Size]byte
	_   [0]func()
}

func digestOf(token []byte) digest { return digest{sum: sha256.Sum256(token)} }

// match finds d among all, or returns -1. How long it takes depends on how many there are
// and on nothing else.
func match(d digest, all []digest) int {
	found := -1
	for i, other := range all {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(d.sum[:], other.sum[:]), i, found)
	}
	return found
}

// legalToken is what RFC 6750 lets stand behind Bearer, and long enough not to be guessed.
var legalToken = regexp.MustCompile(`^[A-Za-z0-9._~+/-]{20,}=*$`)

const tokenBytes = 4096

// readToken is the digest of the token in a file.
func readToken(path string) (digest, error) {
	token, err := ReadToken(path)
	return digestOf([]byte(token)), err
}

// ReadToken reads a token's file. Its error never repeats what stands in it.
func ReadToken(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is no file", path)
	case info.Mode().Perm()&0o027 != 0:
		return "", fmt.Errorf("%s has mode %04o, so others than its owner can read or change it; chmod 600 it, or 640", path, info.Mode().Perm())
	}
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, tokenBytes+1))
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	token := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	switch {
	case token == "":
		return "", fmt.Errorf("%s is empty; put a token into it: openssl rand -hex 32", path)
	case len(token) > tokenBytes || !legalToken.MatchString(token):
		return "", fmt.Errorf("%s holds no token: 20 to %d letters, digits and -._~+/= on one line; make one: openssl rand -hex 32", path, tokenBytes)
	}
	return token, nil
}

// identify tells who sent a request. Without any tokens configured, whoever can reach the
// server, which then is this machine alone, may read.
func (t *Tokens) identify(r *http.Request) (Identity, error) {
	if len(t.all) == 0 {
		// A page of another site that a browser on this machine shows can have its own
		// name lead here.
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if !loopback(strings.Trim(host, "[]")) {
			return Identity{}, &Problem{Status: http.StatusMisdirectedRequest, Code: "wrong_host", Detail: fmt.Sprintf("the request is for the host %q; without tokens only this machine is served, as 127.0.0.1 or localhost", r.Host)}
		}
		return Identity{Role: Viewer}, nil
	}
	refused := func(code, detail string) (Identity, error) {
		return Identity{}, &Problem{Status: http.StatusUnauthorized, Code: code, Detail: detail}
	}
	headers := r.Header.Values("Authorization")
	if len(headers) == 0 {
		return refused("token_missing", "send a token: Authorization: Bearer TOKEN")
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if len(headers) > 1 || !strings.EqualFold(scheme, "Bearer") || len(token) > tokenBytes || !legalToken.MatchString(token) {
		return refused("token_malformed", "the header Authorization is not: Bearer TOKEN")
	}
	var known []Token
	var digests []digest
	for _, one := range t.all {
		d, err := readToken(one.File)
		t.tell(one, err)
		if err == nil {
			known, digests = append(known, one), append(digests, d)
		}
	}
	i := match(digestOf([]byte(token)), digests)
	if i < 0 {
		return refused("token_unknown", "the token is none of those that are configured, or was changed or taken away")
	}
	return Identity{known[i].Name, known[i].Role}, nil
}

// tell logs once that a token's file cannot be used, and once that it can again.
func (t *Tokens) tell(one Token, err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	t.mu.Lock()
	was := t.ill[one.Name]
	t.ill[one.Name] = now
	t.mu.Unlock()
	switch {
	case now == was:
	case now == "":
		t.log.Info("a token's file can be used again", "name", one.Name)
	default:
		t.log.Warn("a token lets nobody in until its file is mended", "name", one.Name, "error", now)
	}
}
