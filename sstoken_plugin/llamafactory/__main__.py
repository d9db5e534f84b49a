"""`python -m sstoken_plugin.llamafactory train c.yaml`: `llamafactory-cli` where there is no start-up file."""

from sstoken_plugin.llamafactory.launch import main

if __name__ == "__main__":
    main()
