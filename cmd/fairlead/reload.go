package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/fairlead/fairlead/internal/config"
)

// writeConfig writes the configuration in force to --write-config-to.
func writeConfig(cfg *config.Config, log *slog.Logger) error {
	data, lost, err := cfg.YAML()
	if err != nil {
		return err
	}
	for _, l := range lost {
		log.Warn(l)
	}
	if err := os.WriteFile(cfg.WriteConfigTo, data, 0o644); err != nil {
		return fmt.Errorf("--write-config-to: %w", err)
	}
	return nil
}

// watchConfig applies changes of the configuration file until the context ends: to the log level,
// to oom_score_adj, and through apply to the rest. Without a file it does nothing.
func watchConfig(ctx context.Context, cfg *config.Config, level *slog.LevelVar, log *slog.Logger, apply func(*config.Config)) {
	path := cfg.ConfigFile
	err := cfg.Watch(ctx, func(next *config.Config, err error) {
		if err != nil {
			log.Error("the changed configuration file is invalid, keeping the running configuration", "path", path, "error", oneLine(err))
			logNotes(next, log)
			return
		}
		live, restart := config.Diff(cfg, next)
		log.Info("the configuration file has changed", "path", path, "applied", len(live), "restart", len(restart))
		logNotes(next, log)
		for _, ch := range live {
			log.Info("applied", "setting", ch.Name, "old", ch.Old, "new", ch.New)
		}
		for _, ch := range restart {
			log.Warn("a change of the configuration file needs a restart", "setting", ch.Name, "old", ch.Old, "new", ch.New)
		}
		if len(live) == 0 {
			return
		}
		old := cfg
		cfg = cfg.Apply(next)
		if cfg.Verbosity != old.Verbosity { // otherwise keep what was set through /debug/flags
			level.Set(slog.Level(-cfg.Verbosity))
		}
		setOOMScoreAdj(cfg.OOMScoreAdj, log)
		apply(cfg)
	})
	if err != nil {
		log.Error("cannot watch the configuration file, changes need a restart", "error", err)
	}
}

// logNotes logs what the operator should know about how the configuration was read.
func logNotes(c *config.Config, log *slog.Logger) {
	for _, n := range c.Notes() {
		log.Warn(n)
	}
}
