package metrics

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/pprof"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// ServerOptions say which pages the metrics server has. A page whose field is nil or false does not
// exist.
type ServerOptions struct {
	// Configz returns the configuration in force, for encoding/json; Flagz returns the flags by
	// name.
	Configz func() any
	Flagz   func() map[string]string
	// Profiling adds /debug/pprof, and /debug/flags, which calls SetVerbosity.
	Profiling    bool
	SetVerbosity func(level int)
	// Auth refuses requests that Reviewer does not allow; all of them if it is nil.
	Auth     bool
	Reviewer Reviewer
	Log      *slog.Logger
}

// Handler returns the handler of the metrics server.
func (m *Monitor) Handler(o ServerOptions) http.Handler {
	p := &pages{mux: http.NewServeMux(), monitor: m, o: o, started: time.Now()}
	for _, path := range []string{"/healthz", "/healthz/ping"} {
		p.get(path, func(w http.ResponseWriter, _ *http.Request) { writeText(w, "ok") })
	}
	p.get("/metrics", promhttp.HandlerFor(m.set.registry, promhttp.HandlerOpts{}).ServeHTTP)
	p.get("/proxyMode", func(w http.ResponseWriter, _ *http.Request) { writeText(w, m.o.Mode.Name) })
	p.get("/statusz", p.statusz)
	if o.Configz != nil {
		p.get("/configz", p.configz)
	}
	if o.Flagz != nil {
		p.get("/flagz", p.flagz)
	}
	if o.Profiling {
		p.debug()
	}
	if !o.Auth {
		return p.mux
	}
	return newGate(p.mux, o.Reviewer, o.Log)
}

// pages are the pages of the server.
type pages struct {
	mux     *http.ServeMux
	monitor *Monitor
	o       ServerOptions
	started time.Time
	paths   []string
}

func (p *pages) get(path string, h http.HandlerFunc) {
	p.mux.HandleFunc("GET "+path, h)
	p.paths = append(p.paths, path)
}

// debug adds the pages by which a caller can make the process work: profiles, and a more verbose
// log.
func (p *pages) debug() {
	p.mux.HandleFunc("/debug/pprof/", pprof.Index)
	p.mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	p.mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	p.mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	p.mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	p.paths = append(p.paths, "/debug/pprof")
	if p.o.SetVerbosity != nil {
		p.get("/debug/flags", func(w http.ResponseWriter, _ *http.Request) {
			writeText(w, "v: PUT a number to /debug/flags/v to change it\n")
		})
		p.mux.HandleFunc("/debug/flags/v", p.verbosity)
	}
}

// verbosity sets the level to the number in the body of a PUT.
func (p *pages) verbosity(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPut {
		http.Error(w, "want PUT", http.StatusNotAcceptable) // the code is kube-proxy's
		return
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, 16))
	if err != nil {
		http.Error(w, "cannot read the request", http.StatusBadRequest)
		return
	}
	level, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 32)
	if err != nil {
		http.Error(w, fmt.Sprintf("%q: want a number", body), http.StatusBadRequest)
		return
	}
	p.o.SetVerbosity(int(level))
	p.o.Log.Info("verbosity changed", "verbosity", level, "by", req.RemoteAddr)
	writeText(w, fmt.Sprintf("successfully set klog.logging.verbosity to %d", level))
}

func (p *pages) configz(w http.ResponseWriter, _ *http.Request) {
	body, err := json.Marshal(p.o.Configz())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body)
}

const notForMachines = "This page is for people; its format may change.\n\n"

func (p *pages) flagz(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	b.WriteString("fairlead flagz\n" + notForMachines)
	flags := p.o.Flagz()
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		fmt.Fprintf(&b, "%s=%s\n", name, flags[name])
	}
	writeText(w, b.String())
}

func (p *pages) statusz(w http.ResponseWriter, _ *http.Request) {
	release := kubernetesRelease()
	up := time.Since(p.started).Round(time.Second)
	writeText(w, fmt.Sprintf("fairlead statusz\n%sStarted: %s\nUp: %s\nGo version: %s\nBinary version: %s\nKubernetes libraries: %s\nMode: %s\nPaths: %s\n",
		notForMachines, p.started.UTC().Format(time.RFC1123), up, runtime.Version(), p.monitor.o.Version, release, p.monitor.o.Mode.Name,
		strings.Join(slices.Sorted(slices.Values(p.paths)), " ")))
}

func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = io.WriteString(w, text) // fails only if the client has gone away
}
