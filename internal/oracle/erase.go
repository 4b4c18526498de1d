package oracle

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"time"

	"github.com/redis/go-redis/v9"
)

// Erase removes what both stores hold for the tables of spec: the indices, their
// aliases, all keys of the key templates and the markers of deleted rows. It is
// how a test or a demonstration gets a world that nobody has used before.
func Erase(ctx context.Context, spec Spec) error {
	client := &http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	var store *redis.Client
	if spec.RedisAddr != "" {
		store = redis.NewClient(&redis.Options{Addr: spec.RedisAddr, ContextTimeoutEnabled: true})
		defer store.Close()
	}
	for _, t := range spec.Tables {
		if spec.ElasticURL != "" && t.Index != "" {
			if err := eraseIndex(ctx, client, spec.ElasticURL, t.Index); err != nil {
				return fmt.Errorf("erase index %s: %w", t.Index, err)
			}
		}
		if store != nil && t.RedisKey != "" {
			template, err := parseTemplate(t.RedisKey, spec.Database, t.Table)
			if err != nil {
				return err
			}
			for _, pattern := range []string{template.pattern(), "lockstep:t:[{:]" + template.pattern() + "*"} {
				if err := eraseKeys(ctx, store, pattern); err != nil {
					return fmt.Errorf("erase redis keys %s: %w", pattern, err)
				}
			}
		}
	}
	return nil
}

// eraseIndex deletes the index of this name, and those with a number behind it.
func eraseIndex(ctx context.Context, client *http.Client, base, index string) error {
	var found []struct {
		Index string `json:"index"`
	}
	if _, err := call(ctx, client, base, "GET", "/_cat/indices/"+url.PathEscape(index)+"*?format=json&h=index", nil, &found); err != nil {
		return err
	}
	ours := regexp.MustCompile("^" + regexp.QuoteMeta(index) + `(-\d+)?$`)
	for _, f := range found {
		if !ours.MatchString(f.Index) {
			continue
		}
		if _, err := call(ctx, client, base, "DELETE", "/"+url.PathEscape(f.Index), nil, nil); err != nil {
			return err
		}
	}
	return nil
}

func eraseKeys(ctx context.Context, store *redis.Client, pattern string) error {
	var cursor uint64
	for {
		keys, next, err := store.Scan(ctx, cursor, pattern, 2000).Result()
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			if err := store.Unlink(ctx, keys...).Err(); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}
