// CoreDNS with the few plugins that the test cluster's Corefile names: the full set would take minutes more to build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
)

// The order in which a query passes the plugins.
func init() {
	dnsserver.Directives = []string{"bind", "errors", "cache", "hosts", "kubernetes"}
}

func main() {
	coremain.Run()
}
