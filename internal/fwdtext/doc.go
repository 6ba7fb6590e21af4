// Package fwdtext is the text form of the forwarding table: what fairlead dump prints, what bug
// reports carry, and what fairlead trace and render read back (--table). Tests keep tables in it.
//
// Each object is one line, so that grep finds all that concerns an address or a Service: first the
// header, then Services, frontends, claims, pools and lists of serving endpoints, each sorted. A
// line is a word that names the kind of object, its key, and fields:
//
//	header masqueradebit=14 cidr4=10.0.0.0/8 nodeports4=all,loopback local=192.168.0.2
//	service default/web created=1700000000 healthcheck=30000 localendpoints=1
//	frontend node4:30080/tcp kind=NodePort owner=default/web:http/tcp all=reject,no-endpoints
//	frontend 10.96.0.1:80/tcp kind=ClusterIP owner=default/web:http/tcp outside=forward,cluster,masquerade,policy-cluster …
//	claim 10.96.0.9:80/tcp …
//	pool default/web:http/tcp family=IPv4 scope=cluster affinity=10800 endpoints=10.0.0.1:80/local,10.0.0.2:80/draining/weight:2
//	serving default/web:dns/udp family=IPv4 endpoints=10.0.0.1:53
//
// A claim is a frontend whose key another Service owns: the table is written as it was put
// together, so that the one that is read behaves the same. Optional fields with their zero value
// are left out, as is the weight 1. Names are escaped as in a URL's query.
//
// object.go lists the fields of each object once, for both directions; the values that need it are
// converted in value.go. What makes a table valid is in package fwd (Validate). The package imports
// fwd alone.
package fwdtext
