# sd-scripts 0.10.1, docs/sd3_train_network.md: its example command.
accelerate launch sd3_train_network.py --pretrained_model_name_or_path=/models/sd3.5_large.safetensors \
  --output_dir=/out --output_name=my_sd3_lora --network_module=networks.lora_sd3 --network_dim=16 --network_alpha=1 \
  --learning_rate=1e-4 --optimizer_type=Adafactor --lr_scheduler=constant --max_train_epochs=10 --sdpa \
  --weighting_scheme=logit_normal --logit_mean=0.5 --training_shift=3.0 --blocks_to_swap=32 --clip_l=/m/clip_l.safetensors \
  --clip_g=/m/clip_g.safetensors --t5xxl=/m/t5xxl.safetensors --network_train_unet_only --min_timestep=100
