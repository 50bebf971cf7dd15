# musubi-tuner 30c658c, docs/zimage.md: its example command, as a batch file continues a line.
accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 src/musubi_tuner/zimage_train_network.py ^
  --dit path/to/z_image_bf16.safetensors --vae path/to/ae.safetensors --text_encoder path/to/qwen3.safetensors ^
  --dataset_config path/to/dataset.toml --sdpa --mixed_precision bf16 --timestep_sampling shift ^
  --weighting_scheme none --discrete_flow_shift 2.0 --optimizer_type adamw8bit --learning_rate 1e-4 ^
  --gradient_checkpointing --max_data_loader_n_workers 2 --persistent_data_loader_workers ^
  --network_module networks.lora_zimage --network_dim 32 --max_train_epochs 16 --save_every_n_epochs 1 --seed 42 ^
  --output_dir path/to/out --output_name name-of-lora --fp8_base --fp8_scaled --fp8_llm
