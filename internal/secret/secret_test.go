package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestASecretIsShownByNothingButReveal(t *testing.T) {
	v := struct{ Password Text }{"hunter2"}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "password", v.Password, "all", v)
	j, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	shown := log.String() + string(j)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
		shown += fmt.Sprintf(verb, v) + fmt.Sprintf(verb, v.Password)
	}
	if strings.Contains(shown, "hunter2") || strings.Contains(shown, fmt.Sprintf("%x", "hunter2")) {
		t.Errorf("the secret is in %s", shown)
	}
	if v.Password.Reveal() != "hunter2" {
		t.Error("Reveal does not give the secret")
	}
}
