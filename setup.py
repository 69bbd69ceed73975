"Read settings.ini and hand it to setuptools"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = parser['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['bitgen', 'bitgen.*']), include_package_data=True, package_dir={'': '.'},  # named, so that an editable install is a path that pyright and jedi can follow
    package_data={'bitgen': ['py.typed', '*.pyi', 'demo/*', 'page_files/*']},
    python_requires=f">={cfg['min_python']},<3.13",  # torch runs on 3.13 and 3.14 too: the notebooks have not been run there yet
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split(), 'docs': cfg['docs_requirements'].split(),
                    'data': cfg['data_requirements'].split(),       # Hub data sets and Parquet
                    'export': cfg['export_requirements'].split()},  # models for devices
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"bitgen={cfg['lib_path']}._modidx:d"]},
    classifiers=['License :: OSI Approved :: Apache Software License', 'Programming Language :: Python :: 3.10',
                 'Programming Language :: Python :: 3.11', 'Programming Language :: Python :: 3.12'],
)
