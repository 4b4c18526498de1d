package testenv

import (
	"net"
	"strconv"
	"testing"
)

func TestNoAddressIsGivenTwiceOrToWhoeverConnects(t *testing.T) {
	given := map[string]bool{}
	for range 100 {
		addr := FreeAddr(t)
		_, text, _ := net.SplitHostPort(addr)
		port, err := strconv.Atoi(text)
		if err != nil || given[addr] {
			t.Fatalf("%s: %v, or given before", addr, err)
		}
		given[addr] = true
		if first := systemPorts(); first > lowestPort+1000 && uint32(port) >= first {
			t.Errorf("%s is one of those that the system gives from %d on", addr, first)
		}
	}
	l, err := net.Listen("tcp", FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	portsGiven.Add(^uint32(0)) // its turn again
	if addr := FreeAddr(t); addr == l.Addr().String() {
		t.Errorf("%s is given while somebody listens on it", addr)
	}
}
