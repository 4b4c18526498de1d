// Command etcd is the server that comes with the etcd module, whose own command cannot be built from a module cache.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
