BEGIN TRANSACTION;
CREATE TABLE accept (
      job_id TEXT PRIMARY KEY,
      seq BIGINT NOT NULL,
      accepted_ms BIGINT NOT NULL,
      epoch BIGINT NOT NULL,
      format INTEGER NOT NULL,
      record TEXT NOT NULL,
      payload BLOB NOT NULL
    );
INSERT INTO "accept" VALUES('replayed',1,0,1,1,'{"spec":{"job_id":"replayed","needs":{"model_id":"m","engine":"","engine_version":"","model_digest":"","sampler_profile_version":"","deterministic":false,"min_vram_bytes":null,"quantization":"","min_compute_cap":null,"required_extensions":[],"device_mask":[],"required_ctx":null,"certain_ctx":null},"priority":1,"identity":"","request_id":"","session_id":"","digest":"digest of replayed","seed":0,"traceparent":"","correlation_id":"","prompt_bytes":0,"max_tokens":null,"expected_tokens":null,"est_kv_bytes":null,"deadline_ms":null,"queue_timeout_ms":null,"kv_reuse":false,"failover":"verified_replay","cancel_on_disconnect":false,"budgets":{"tokens":null,"time_ms":null,"cost_micros":null}},"seq":1,"accepted_ms":0,"position":1,"predicted_start_ms":0,"predicted_end_ms":13000,"displaced":null}',X'78');
INSERT INTO "accept" VALUES('cancelled',2,0,1,1,'{"spec":{"job_id":"cancelled","needs":{"model_id":"m","engine":"","engine_version":"","model_digest":"","sampler_profile_version":"","deterministic":false,"min_vram_bytes":null,"quantization":"","min_compute_cap":null,"required_extensions":[],"device_mask":[],"required_ctx":null,"certain_ctx":null},"priority":1,"identity":"","request_id":"","session_id":"","digest":"digest of cancelled","seed":0,"traceparent":"","correlation_id":"","prompt_bytes":0,"max_tokens":null,"expected_tokens":null,"est_kv_bytes":null,"deadline_ms":null,"queue_timeout_ms":null,"kv_reuse":false,"failover":"fail","cancel_on_disconnect":false,"budgets":{"tokens":null,"time_ms":null,"cost_micros":null}},"seq":2,"accepted_ms":0,"position":1,"predicted_start_ms":0,"predicted_end_ms":13000,"displaced":null}',X'79');
INSERT INTO "accept" VALUES('finished',3,0,1,1,'{"spec":{"job_id":"finished","needs":{"model_id":"m","engine":"","engine_version":"","model_digest":"","sampler_profile_version":"","deterministic":false,"min_vram_bytes":null,"quantization":"","min_compute_cap":null,"required_extensions":[],"device_mask":[],"required_ctx":null,"certain_ctx":null},"priority":1,"identity":"","request_id":"","session_id":"","digest":"digest of finished","seed":0,"traceparent":"","correlation_id":"","prompt_bytes":0,"max_tokens":null,"expected_tokens":null,"est_kv_bytes":null,"deadline_ms":null,"queue_timeout_ms":null,"kv_reuse":false,"failover":"fail","cancel_on_disconnect":false,"budgets":{"tokens":null,"time_ms":null,"cost_micros":null}},"seq":3,"accepted_ms":0,"position":1,"predicted_start_ms":0,"predicted_end_ms":14280,"displaced":null}',X'7A');
CREATE TABLE dispatch (
      job_id TEXT NOT NULL REFERENCES accept (job_id),
      attempt INTEGER NOT NULL,
      written BIGINT NOT NULL,
      sent_ms BIGINT NOT NULL,
      epoch BIGINT NOT NULL,
      format INTEGER NOT NULL,
      record TEXT NOT NULL,
      PRIMARY KEY (job_id, attempt)
    );
INSERT INTO "dispatch" VALUES('replayed',1,2,0,1,1,'{"job_id":"replayed","attempt":1,"pool_id":"p","replica_id":"p#1","host_id":"h","sent_ms":0,"decision":{"job_id":"replayed","attempt":1,"decided_ms":0,"pool_id":"p","decided_by":"pool_id","candidates":[{"pool_id":"p","replica_id":"p#1","predicted_end_ms":13000,"first_token_ms":200,"decode_ms":12800,"kv_warm":false,"slots_free":8,"vram_headroom_bytes":null,"tokens_per_s":20.0,"snapshot_version":1,"snapshot_age_ms":0},{"pool_id":"q","replica_id":"q#1","predicted_end_ms":13000,"first_token_ms":200,"decode_ms":12800,"kv_warm":false,"slots_free":8,"vram_headroom_bytes":null,"tokens_per_s":20.0,"snapshot_version":1,"snapshot_age_ms":0}],"candidates_total":2,"exclusions":[],"exclusions_total":0,"waited_ms":0,"declined_offers":0,"rules_version":2},"replica_set":["llama.cpp","","",""]}');
INSERT INTO "dispatch" VALUES('replayed',2,3,0,1,1,'{"job_id":"replayed","attempt":2,"pool_id":"q","replica_id":"q#1","host_id":"h","sent_ms":0,"decision":{"job_id":"replayed","attempt":2,"decided_ms":0,"pool_id":"q","decided_by":"only_candidate","candidates":[{"pool_id":"q","replica_id":"q#1","predicted_end_ms":13000,"first_token_ms":200,"decode_ms":12800,"kv_warm":false,"slots_free":8,"vram_headroom_bytes":null,"tokens_per_s":20.0,"snapshot_version":1,"snapshot_age_ms":0}],"candidates_total":1,"exclusions":[{"pool_id":"p","shortfalls":[{"reason":"tried","required":"another replica","offered":"p#1"}]}],"exclusions_total":1,"waited_ms":0,"declined_offers":0,"rules_version":2},"replica_set":["llama.cpp","","",""]}');
INSERT INTO "dispatch" VALUES('cancelled',1,5,0,1,1,'{"job_id":"cancelled","attempt":1,"pool_id":"p","replica_id":"p#1","host_id":"h","sent_ms":0,"decision":{"job_id":"cancelled","attempt":1,"decided_ms":0,"pool_id":"p","decided_by":"score","candidates":[{"pool_id":"p","replica_id":"p#1","predicted_end_ms":13000,"first_token_ms":200,"decode_ms":12800,"kv_warm":false,"slots_free":8,"vram_headroom_bytes":null,"tokens_per_s":20.0,"snapshot_version":1,"snapshot_age_ms":0},{"pool_id":"q","replica_id":"q#1","predicted_end_ms":14280,"first_token_ms":200,"decode_ms":14080,"kv_warm":false,"slots_free":7,"vram_headroom_bytes":null,"tokens_per_s":18.181818181818183,"snapshot_version":1,"snapshot_age_ms":0}],"candidates_total":2,"exclusions":[],"exclusions_total":0,"waited_ms":0,"declined_offers":0,"rules_version":2},"replica_set":["llama.cpp","","",""]}');
INSERT INTO "dispatch" VALUES('finished',1,8,0,1,1,'{"job_id":"finished","attempt":1,"pool_id":"p","replica_id":"p#1","host_id":"h","sent_ms":0,"decision":{"job_id":"finished","attempt":1,"decided_ms":0,"pool_id":"p","decided_by":"pool_id","candidates":[{"pool_id":"p","replica_id":"p#1","predicted_end_ms":14280,"first_token_ms":200,"decode_ms":14080,"kv_warm":false,"slots_free":7,"vram_headroom_bytes":null,"tokens_per_s":18.181818181818183,"snapshot_version":1,"snapshot_age_ms":0},{"pool_id":"q","replica_id":"q#1","predicted_end_ms":14280,"first_token_ms":200,"decode_ms":14080,"kv_warm":false,"slots_free":7,"vram_headroom_bytes":null,"tokens_per_s":18.181818181818183,"snapshot_version":1,"snapshot_age_ms":0}],"candidates_total":2,"exclusions":[],"exclusions_total":0,"waited_ms":0,"declined_offers":0,"rules_version":2},"replica_set":["llama.cpp","","",""]}');
CREATE TABLE journal (
      id INTEGER PRIMARY KEY CHECK (id = 1),
      schema_version INTEGER NOT NULL,
      journal_id TEXT NOT NULL,
      epoch BIGINT NOT NULL,
      pruned_last_ms BIGINT NOT NULL
    );
INSERT INTO "journal" VALUES(1,1,'00000000000000000000000000000000',1,0);
CREATE TABLE terminal (
      job_id TEXT PRIMARY KEY REFERENCES accept (job_id),
      written BIGINT NOT NULL,
      ended_ms BIGINT NOT NULL,
      epoch BIGINT NOT NULL,
      format INTEGER NOT NULL,
      record TEXT NOT NULL
    );
INSERT INTO "terminal" VALUES('cancelled',6,0,1,1,'{"job_id":"cancelled","state":"cancelled","outcome":{"finish":"cancelled","error":null,"text_bytes":null,"text_digest":null},"usage":{"tokens_in":null,"tokens_out":null,"queue_time_ms":0,"first_token_ms":null,"decode_time_ms":null},"ended_ms":0}');
INSERT INTO "terminal" VALUES('finished',9,0,1,1,'{"job_id":"finished","state":"finished","outcome":{"finish":"eos","error":null,"text_bytes":0,"text_digest":0},"usage":{"tokens_in":1,"tokens_out":2,"queue_time_ms":0,"first_token_ms":null,"decode_time_ms":null},"ended_ms":0}');
CREATE INDEX terminal_ended_ms ON terminal (ended_ms);
COMMIT;
