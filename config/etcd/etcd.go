// Package etcd reads the text of one key of etcd, and follows it.
//
// A key has a state and not a history: who follows it is told of what is there last, of each state
// once, and not of every one between two that come at once. So whatever cuts the watch off (a
// connection that ends, a leader that is lost, a log that was compacted meanwhile) is mended in one
// way: connect, get, and watch from the revision of what was got.
package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"lockstep/internal/certs"
	"lockstep/internal/files"
)

// Variables of the environment say how etcd is to be trusted, and who asks.
const (
	caFile       = "LOCKSTEP_ETCD_CA_FILE"
	certFile     = "LOCKSTEP_ETCD_CERT_FILE"
	keyFile      = "LOCKSTEP_ETCD_KEY_FILE"
	user         = "LOCKSTEP_ETCD_USER"
	passwordFile = "LOCKSTEP_ETCD_PASSWORD_FILE"
)

const example = "etcd://etcd-1:2379,etcd-2:2379/lockstep/shop.yaml"

// Key is one key of etcd.
type Key struct {
	endpoints []string
	key       string
	files     map[string]string // and the user, by the names of the variables

	patience time.Duration // how long etcd is tried before it counts as away
	beat     time.Duration // how often it is asked, beside the watch, whether it is still there
}

// Value is what the key holds.
type Value struct {
	Text     []byte
	Revision int64 // the mod_revision of the key
}

var login = regexp.MustCompile(`^(etcds?://)[^/]*@`)

// IsAddress reports whether a text names a key of etcd, and no file.
func IsAddress(text string) bool {
	return strings.HasPrefix(text, "etcd://") || strings.HasPrefix(text, "etcds://")
}

// WithoutLogin is an address as it may be shown: somebody may have put a password into it.
func WithoutLogin(address string) string { return login.ReplaceAllString(address, "${1}********@") }

// Open reads an address, etcd://HOST:PORT,HOST:PORT/KEY or with TLS etcds://, and the variables of
// the environment. It connects to nobody.
func Open(address string, env func(string) (string, bool)) (*Key, error) {
	scheme, rest, _ := strings.Cut(address, "://")
	hosts, key, _ := strings.Cut(rest, "/")
	k := &Key{key: "/" + key, files: map[string]string{}, patience: 5 * time.Second, beat: 5 * time.Second}
	switch {
	case login.MatchString(address):
		return nil, fmt.Errorf("a login has no place in the address; put the user into %s, and the name of a file with the password into %s", user, passwordFile)
	case key == "":
		return nil, errors.New("names no key; write for example " + example)
	case strings.ContainsAny(rest, "?#"):
		return nil, fmt.Errorf("? and # have no place in the address; etcds:// is etcd with TLS, and LOCKSTEP_ETCD_* in the environment say the rest")
	}
	way := map[string]string{"etcd": "http://", "etcds": "https://"}[scheme]
	for host := range strings.SplitSeq(hosts, ",") {
		if name, port, err := net.SplitHostPort(host); err != nil || name == "" || port == "" {
			return nil, fmt.Errorf("%q is no host:port; write for example %s", host, example)
		}
		k.endpoints = append(k.endpoints, way+host)
	}
	for _, name := range []string{caFile, certFile, keyFile, user, passwordFile} {
		k.files[name], _ = env(name)
	}
	for _, pair := range [][2]string{{certFile, keyFile}, {user, passwordFile}} {
		if (k.files[pair[0]] == "") != (k.files[pair[1]] == "") {
			return nil, fmt.Errorf("%s and %s go together; set both or neither", pair[0], pair[1])
		}
	}
	for _, name := range []string{caFile, certFile} {
		if k.files[name] != "" && scheme == "etcd" {
			return nil, fmt.Errorf("%s is set, but etcd:// has no TLS; write etcds://", name)
		}
	}
	return k, nil
}

// errAway is that etcd does not answer, for whatever reason.
var errAway = errors.New("etcd does not answer")

// missing is that there is no such key.
func (k *Key) missing() error {
	return fmt.Errorf("there is no such key; put the configuration there: etcdctl put %s < lockstep.yaml", k.key)
}

// Get asks what the key holds. It tries for some seconds while etcd is away.
func (k *Key) Get(ctx context.Context) (Value, error) {
	client, now, err := k.connect(ctx)
	if err != nil {
		return Value{}, err
	}
	defer client.Close()
	return now.Value, now.err
}

// state is what the key held at a revision of the store.
type state struct {
	Value
	err error // there is no such key
	at  int64
}

func (k *Key) get(ctx context.Context, client *clientv3.Client) (state, error) {
	ctx, cancel := context.WithTimeout(ctx, k.patience)
	defer cancel()
	res, err := client.Get(ctx, k.key)
	switch {
	case err != nil:
		return state{}, err
	case len(res.Kvs) == 0:
		return state{err: k.missing(), at: res.Header.Revision}, nil
	}
	return state{Value: Value{res.Kvs[0].Value, res.Kvs[0].ModRevision}, at: res.Header.Revision}, nil
}

// connect gives a connection over which etcd has answered, and the answer. Files of certificates and
// of the password are read anew for each.
func (k *Key) connect(ctx context.Context) (*clientv3.Client, state, error) {
	patient, cancel := context.WithTimeout(ctx, k.patience)
	defer cancel()
	why := "nothing was heard of it"
	for {
		client, now, err := k.try(ctx, patient)
		if err == nil {
			return client, now, nil
		}
		code, said := status.Code(err), status.Convert(err).Message()
		switch {
		case ctx.Err() != nil:
			return nil, state{}, ctx.Err()
		case errors.Is(err, rpctypes.ErrUserEmpty):
			return nil, state{}, fmt.Errorf("etcd wants a login; set %s and %s", user, passwordFile)
		case errors.Is(err, rpctypes.ErrAuthFailed):
			return nil, state{}, fmt.Errorf("etcd refuses the user %s; mend %s or what %s holds", k.files[user], user, passwordFile)
		case errors.Is(err, rpctypes.ErrPermissionDenied):
			return nil, state{}, fmt.Errorf("etcd does not let us read the key; grant it: etcdctl role grant-permission ROLE read %s", k.key)
		case errors.Is(err, context.DeadlineExceeded) || code == codes.DeadlineExceeded:
		case errors.As(err, new(rpctypes.EtcdError)) || code == codes.Unavailable:
			why = said
			if strings.Contains(said, "server preface") && strings.HasPrefix(k.endpoints[0], "http:") {
				why += "; with TLS it is etcds://"
			}
		default:
			return nil, state{}, err
		}
		select {
		case <-patient.Done():
			return nil, state{}, fmt.Errorf("%w within %s: %s", errAway, k.patience, why)
		case <-time.After(k.patience / 20):
		}
	}
}

func (k *Key) try(ctx, patient context.Context) (*clientv3.Client, state, error) {
	conf := clientv3.Config{
		Context: ctx, Endpoints: k.endpoints, Username: k.files[user], Logger: zap.NewNop(),
		DialTimeout: k.patience, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: k.patience,
		MaxUnaryRetries: 5, DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(atOnce)},
	}
	if strings.HasPrefix(k.endpoints[0], "https:") {
		conf.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		if err := certs.Load(conf.TLS, k.files[caFile], k.files[certFile], k.files[keyFile]); err != nil {
			return nil, state{}, errors.New(strings.NewReplacer("tls.ca_file", caFile, "tls.cert_file", certFile).Replace(err.Error()))
		}
	}
	if name := k.files[passwordFile]; name != "" {
		var err error
		if conf.Password, err = files.Secret(name); err != nil {
			return nil, state{}, fmt.Errorf("%s: %w", passwordFile, err)
		}
	}
	client, err := clientv3.New(conf)
	if err != nil {
		return nil, state{}, err
	}
	now, err := k.get(patient, client)
	if err != nil {
		client.Close()
		return nil, state{}, err
	}
	return client, now, nil
}

// atOnce has a call fail while there is no connection. The library has it wait for one, and what ends
// while it waits does not say why there is none.
func atOnce(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return call(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// Follow tells of each change of the key until ctx ends, beginning with what is not as it was, which
// is what a Get gave: that there is another value, that there is none, or that etcd is away, and
// then what the key holds when it is back.
func (k *Key) Follow(ctx context.Context, was Value, tell func(Value, error)) {
	last := state{Value: was}
	take := func(now state) {
		same := now.Revision == last.Revision && bytes.Equal(now.Text, last.Text) && (now.err == nil) == (last.err == nil)
		switch {
		case ctx.Err() != nil:
		case same && now.err == nil:
		case same && (now.err.Error() == last.err.Error() || errors.Is(now.err, errAway) && errors.Is(last.err, errAway)):
		default:
			last = now
			tell(now.Value, now.err)
		}
	}
	for ctx.Err() == nil {
		if err := k.lap(ctx, take); err != nil {
			take(state{err: err})
		}
		select {
		case <-ctx.Done():
		case <-time.After(k.patience / 20):
		}
	}
}

// lap connects and takes what the key holds, and then each other state, until it has to be begun anew.
// Its error is why the key cannot be read.
func (k *Key) lap(ctx context.Context, take func(state)) error {
	client, first, err := k.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	take(first)
	at := first.at // what is older is known
	watching, stop := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer stop()
	// Watch gives a channel once there is a watch, and the library tries for ever to have one.
	late := time.AfterFunc(k.patience, stop)
	events := client.Watch(watching, k.key, clientv3.WithRev(at+1))
	late.Stop()
	beat := time.NewTicker(k.beat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case said, ok := <-events:
			if !ok || said.Err() != nil {
				return nil // compacted, without a leader, refused: the next lap has it, or knows why not
			}
			for _, e := range said.Events {
				if e.Kv.ModRevision <= at {
					continue
				}
				at = e.Kv.ModRevision
				if now := (state{Value: Value{e.Kv.Value, at}, at: at}); e.Type == clientv3.EventTypePut {
					take(now)
				} else {
					take(state{err: k.missing(), at: at})
				}
			}
		case <-beat.C:
			// The library hides that a watch is cut off. And a store that was made anew may never
			// come to the revision that is watched for.
			now, err := k.get(ctx, client)
			if err != nil || now.at < at {
				return nil
			}
			at = now.at
			take(now)
		}
	}
}
