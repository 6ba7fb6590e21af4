package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/fairlead/fairlead/internal/config"
)

// writeConfig writes the configuration as it is in force to --write-config-to.
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

// watchConfig brings changes of the configuration file into the running process until the context ends: into the level of the
// log, oom_score_adj, and what apply reaches. Without a file it does nothing; where files cannot be watched it says so.
func watchConfig(ctx context.Context, cfg *config.Config, level *slog.LevelVar, log *slog.Logger, apply func(*config.Config)) {
	path := cfg.ConfigFile
	err := cfg.Watch(ctx, func(next *config.Config, err error) {
		if err != nil {
			log.Error("the configuration file has changed and is not valid, the running configuration stays in force", "file", path, "error", oneLine(err))
			logNotes(next, log)
			return
		}
		live, restart := config.Diff(cfg, next)
		log.Info("the configuration file has changed", "file", path, "applied", len(live), "restart", len(restart))
		logNotes(next, log)
		for _, ch := range live {
			log.Info("applied", "setting", ch.Name, "old", ch.Old, "new", ch.New)
		}
		for _, ch := range restart {
			log.Warn("a restart is needed for a change of the configuration file", "setting", ch.Name, "old", ch.Old, "new", ch.New)
		}
		if len(live) == 0 {
			return
		}
		old := cfg
		cfg = cfg.Apply(next)
		if cfg.Verbosity != old.Verbosity { // otherwise what was set through /debug/flags stays
			level.Set(slog.Level(-cfg.Verbosity))
		}
		setOOMScoreAdj(cfg.OOMScoreAdj, log)
		apply(cfg)
	})
	if err != nil {
		log.Error("changes of the configuration file are not seen, restart to bring them into force", "error", err)
	}
}

// logNotes logs what the operator should know of how a configuration came about.
func logNotes(c *config.Config, log *slog.Logger) {
	for _, n := range c.Notes() {
		log.Warn(n)
	}
}
