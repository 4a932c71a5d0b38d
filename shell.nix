# `nix-shell`, for Nix without flakes.
(import ./.).devShells.${builtins.currentSystem}.default
