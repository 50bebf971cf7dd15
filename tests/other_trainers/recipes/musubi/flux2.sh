# musubi-tuner 0131926, docs/flux_2.md: its options and values.
accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 src/musubi_tuner/flux_2_train_network.py \
  --dit path/to/dit_model --vae path/to/ae_model --text_encoder path/to/text_encoder \
  --dataset_config path/to/elsewhere.toml --sdpa --mixed_precision bf16 --timestep_sampling flux2_shift \
  --weighting_scheme none --optimizer_type adamw8bit --learning_rate 1e-4 --gradient_checkpointing \
  --max_data_loader_n_workers 2 --persistent_data_loader_workers --network_module networks.lora_flux_2 \
  --network_dim 32 --max_train_epochs 16 --save_every_n_epochs 1 --seed 42 --output_dir path/to/output_dir \
  --output_name name-of-lora
