package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"

	"lockstep/config"
	"lockstep/config/etcd"
)

// source is where the text of a configuration is.
type source interface {
	// read gives the text as it is now and, where there are revisions, which one it is; else 0.
	// A text with a revision is whole.
	read(ctx context.Context) (text []byte, revision int64, err error)
	// follow has look called whenever read has something else to give, until ctx ends. A source
	// that tells nobody just waits, and has to be read again and again.
	follow(ctx context.Context, look func())
}

// sourceOf is the file, or the key of etcd, of this name.
func (a *app) sourceOf(name string) (source, error) {
	if !etcd.IsAddress(name) {
		return fileSource(name), nil
	}
	key, err := etcd.Open(name, a.env)
	if err != nil {
		return nil, config.Problems{{File: etcd.WithoutLogin(name), Message: err.Error()}}
	}
	return &etcdSource{key: key}, nil
}

// configText is a configuration and what it was read from.
type configText struct {
	cfg      *config.Config
	sum      string // SHA-256 of the text
	revision int64  // of the key in etcd; 0 for a file
}

// parse reads a configuration from a source of this name. What cannot be read is a Problem.
func (a *app) parse(ctx context.Context, name string, from source) (configText, error) {
	text, revision, err := from.read(ctx)
	if err != nil {
		return configText{}, config.Problems{{File: name, Message: err.Error()}}
	}
	sum := sha256.Sum256(text)
	c, err := config.Parse(name, text, a.env)
	return configText{c, hex.EncodeToString(sum[:]), revision}, err
}

type fileSource string

func (f fileSource) read(context.Context) ([]byte, int64, error) {
	text, err := config.Read(string(f))
	return text, 0, err
}

func (fileSource) follow(ctx context.Context, _ func()) { <-ctx.Done() }

// etcdSource asks etcd each time that it is read until it is followed, and from then on has what etcd
// told it last, so that whoever reads it does not wait.
type etcdSource struct {
	key *etcd.Key

	mu        sync.Mutex
	following bool
	value     etcd.Value
	err       error
}

func (e *etcdSource) read(ctx context.Context) ([]byte, int64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.following {
		e.value, e.err = e.key.Get(ctx)
	}
	return e.value.Text, e.value.Revision, e.err
}

func (e *etcdSource) follow(ctx context.Context, look func()) {
	e.mu.Lock()
	e.following = true
	was := e.value
	e.mu.Unlock()
	e.key.Follow(ctx, was, func(value etcd.Value, err error) {
		e.mu.Lock()
		e.value, e.err = value, err
		e.mu.Unlock()
		look()
	})
}
